"""Sentences on standard input, one a line, as `{"input_ids": .., "attention_mask": ..}` lines in a model's tokens."""

import json
import sys

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for line in sys.stdin:
    encoded = tokenizer(line.strip(), truncation=True, max_length=128)
    print(json.dumps({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}))
