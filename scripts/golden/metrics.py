"""Writes peft-core/tests/golden/metrics.json: metrics of random predictions by scikit-learn and scipy.

Usage: python scripts/golden/metrics.py

What is not defined (a correlation with a constant side) is null. scikit-learn gives 0 to Matthews' correlation and F1
where their denominators are 0.
"""

import json
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

OUTPUT = Path(__file__).resolve().parents[2] / "peft-core" / "tests" / "golden" / "metrics.json"


def classes(found, gold):
    return {
        "found": [int(x) for x in found],
        "gold": [int(x) for x in gold],
        "accuracy": float(accuracy_score(gold, found)),
        "f1": float(f1_score(gold, found, zero_division=0)),
        "matthews": float(matthews_corrcoef(gold, found)),
    }


def values(found, gold):
    found, gold = np.asarray(found, float), np.asarray(gold, float)
    number = lambda x: None if np.isnan(x) else float(x)
    return {
        "found": found.tolist(),
        "gold": gold.tolist(),
        "pearson": number(pearsonr(found, gold).statistic),
        "spearman": number(spearmanr(found, gold).statistic),
    }


def main():
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    binary = []
    for n in [2, 3, 5, 8, 13, 21, 34, 55]:
        gold = rng.integers(0, 2, n)
        wrong = rng.random(n) < 0.3
        binary += [classes(np.where(wrong, 1 - gold, gold), gold), classes(rng.integers(0, 2, n), gold)]
    binary += [classes([a] * 4, [b] * 4) for a in (0, 1) for b in (0, 1)]
    mixed = [0, 1, 1, 0, 1]
    binary += [classes([0] * 5, mixed), classes([1] * 5, mixed), classes(mixed, [0] * 5), classes(mixed, [1] * 5)]
    binary += [classes(mixed, mixed), classes([1 - x for x in mixed], mixed)]

    real = []
    for n in [2, 3, 5, 8, 13, 21, 34, 55]:
        gold = rng.uniform(0, 5, n)
        real += [values(gold + rng.normal(0, 1, n), gold), values(rng.normal(0, 1, n), np.round(gold))]
    for n in [4, 9, 30]:  # ties on both sides
        real.append(values(rng.integers(0, 3, n), rng.integers(0, 3, n)))
    some = rng.uniform(0, 5, 10)
    real += [values([0.1] * 10, some), values(some, [0.1] * 10), values([0.1] * 10, [2.0] * 10)]
    real += [values(some, 3 * some - 1), values(some, -some), values(1e9 + some, some), values(1e-9 * some, np.exp(some))]
    OUTPUT.write_text(json.dumps({"classes": binary, "values": real}) + "\n")
    print(len(binary), "cases of classes,", len(real), "of values")


if __name__ == "__main__":
    main()
