"""Writes peft-core/tests/golden/entities.json: precision, recall and F1 of entities in random tags by seqeval.

Usage: python scripts/golden/entities.py

seqeval's default mode, which takes tags of no scheme for entities too; 0 where nothing was found or to be found.
"""

import json
import random
import warnings
from pathlib import Path

from seqeval.metrics import f1_score, precision_score, recall_score

OUTPUT = Path(__file__).resolve().parents[2] / "peft-core" / "tests" / "golden" / "entities.json"

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
IOBES = BIO + ["E-PER", "S-PER", "E-LOC", "S-LOC"]
ODD = IOBES + ["B", "I", "O-PER", "PER", ".", "B-A-B", "I-A-B", "OTHER"]


def well_formed(rng, length):
    tags = []
    while len(tags) < length:
        kind = rng.choice(["O", "PER", "LOC"])
        if kind == "O":
            tags.append("O")
        else:
            tags += [f"B-{kind}"] + [f"I-{kind}"] * rng.randrange(3)
    return tags[:length]


def main():
    warnings.simplefilter("ignore")
    rng = random.Random(0)
    cases = []
    for i in range(240):
        tags = [BIO, IOBES, ODD, None][i % 4]
        found, gold = [], []
        for _ in range(rng.randrange(1, 5)):
            length = rng.randrange(1, 10)
            right = well_formed(rng, length) if tags is None else [rng.choice(tags) for _ in range(length)]
            guess = [tag if rng.random() < 0.7 else rng.choice(tags or BIO) for tag in right]
            found.append(guess)
            gold.append(right)
        cases.append((found, gold))
    cases += [([["O", "O"]], [["O", "O"]]), ([["B-A"]], [["O"]]), ([["O"]], [["B-A"]])]
    scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    lines = []
    for found, gold in cases:
        values = {name: float(score(gold, found, zero_division=0)) for name, score in scores.items()}
        lines.append(json.dumps({"found": found, "gold": gold, **values}))
    OUTPUT.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
