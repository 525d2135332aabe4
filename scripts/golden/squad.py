"""Exact match and F1 of answers by SQuAD's script, as transformers 4.57 has it: peft-core/tests/golden/squad.json.

Usage: python scripts/golden/squad.py   (in the environment of adapterhub.py)
"""

import json
import random
from types import SimpleNamespace

from common import MODELS
from transformers.data.metrics.squad_metrics import get_raw_scores

BY_HAND = [
    ("", []),
    ("", [""]),
    ("an answer", []),
    ("the", []),
    ("The", ["a"]),
    ("", ["the cat"]),
    ("the cat", ["cat"]),
    ("cat", ["A cat.", "the dog"]),
    ("Theatre an", ["theatre"]),
    ("a-b", ["ab"]),
    ("a – b", ["b"]),
    ("a’s", ["s"]),
    ("é a é", ["é é"]),
    ("ana", ["na"]),
    ("the 1,000th", ["1000th"]),
    ("x\u00a0y", ["x y"]),
    ("x\x1cy", ["x y"]),
    ("the_cat", ["cat"]),
    ("word word word", ["word other"]),
    ("word", ["word word"]),
    ("STRASSE", ["straße"]),
    ("ΟΔΟΣ", ["οδος", "οδοσ"]),
    ("数学", ["数 学"]),
]
WORDS = ["the", "a", "An", "Paris,", "paris", "(1999)", "1999", "of", "“quoted”", "well-known", "ß", "l'eau", "—", "x", "X."]


def main():
    draw = random.Random(0)
    text = lambda: " ".join(draw.choices(WORDS, k=draw.randrange(1, 6)))
    cases = BY_HAND + [(text(), [text() for _ in range(draw.randrange(1, 4))]) for _ in range(100)]
    rows = []
    for i, (found, right) in enumerate(cases):
        example = SimpleNamespace(qas_id=i, answers=[{"text": answer} for answer in right])
        exact, f1 = get_raw_scores([example], {i: found})
        rows.append({"found": found, "right": right, "exact": float(exact[i]), "f1": float(f1[i])})
    (MODELS / "squad.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
