#!/usr/bin/env python3
"""Compares logits written by this library with what transformers and HF PEFT compute.

    check_adapter.py MODEL_DIR ADAPTER_DIR INPUT.jsonl LOGITS.safetensors
    check_adapter.py --no-adapter MODEL_DIR INPUT.jsonl LOGITS.safetensors

MODEL_DIR is a folder with config.json and the weights of an encoder for classes, a T5 or a LLaMA. An encoder's classification head
may be missing, it then comes from the adapter. ADAPTER_DIR is a folder with adapter_config.json and
adapter_model.safetensors. Every line of INPUT.jsonl is one example:

    {"input_ids": [0, 5, 2], "attention_mask": [1, 1, 1], "token_type_ids": [0, 0, 0], "label": 1}

(only input_ids is required; T5 needs labels, which its decoder sees behind by one), and LOGITS.safetensors holds `logits.0`, `logits.1`, ... for the lines
in order. With --no-adapter the model folder itself is checked, for example a merged model.

Exit status: 0 when the largest absolute difference is within --tolerance, 1 when it is not or a
tensor is missing or has the wrong size.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers.utils import logging

WRITERS = {"t5": AutoModelForSeq2SeqLM, "llama": AutoModelForCausalLM}
HEADS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="[ADAPTER_DIR] INPUT.jsonl LOGITS.safetensors")
    parser.add_argument("--no-adapter", action="store_true", help="check MODEL_DIR itself")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    expected = 2 if args.no_adapter else 3
    if len(args.paths) != expected:
        parser.error(f"expected {expected} paths after MODEL_DIR, got {len(args.paths)}")
    *adapter, args.input, args.logits = args.paths
    args.adapter_dir = adapter[0] if adapter else None
    return args


def shapes_of_adapter(folder):
    with safe_open(str(folder / "adapter_model.safetensors"), "pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}


def load(args):
    kind = WRITERS.get(AutoConfig.from_pretrained(args.model_dir).model_type, AutoModelForSequenceClassification)
    if args.adapter_dir is None:
        model, report = kind.from_pretrained(args.model_dir, output_loading_info=True)
        if report["missing_keys"]:
            sys.exit(f"the model folder lacks {sorted(report['missing_keys'])}")
        return model.float().eval()

    from peft import PeftModel

    # The adapter brings the head along; its shape tells the number of labels.
    shapes = shapes_of_adapter(args.adapter_dir)
    labels = next((shape[0] for key, shape in shapes.items() if key.endswith(HEADS)), None)
    options = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    model, report = kind.from_pretrained(args.model_dir, output_loading_info=True, **options)
    absent = sorted(key for key in report["missing_keys"] if not any(name.endswith(f".{key}") for name in shapes))
    if absent:
        sys.exit(f"neither the model folder nor the adapter has {absent}")
    return PeftModel.from_pretrained(model.float(), args.adapter_dir).eval()


def main():
    args = arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = load(args)
    given = load_file(args.logits)
    lines = [json.loads(line) for line in args.input.read_text().splitlines() if line.strip()]
    worst, correct, labelled, broken = 0.0, 0, 0, []
    for index, example in enumerate(lines):
        inputs = {"input_ids": torch.tensor([example["input_ids"]])}
        mask = example.get("attention_mask")
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"]) if mask is None else torch.tensor([mask])
        if example.get("token_type_ids") is not None:
            inputs["token_type_ids"] = torch.tensor([example["token_type_ids"]])
        if model.config.is_encoder_decoder:
            inputs["labels"] = torch.tensor([example["labels"]])
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        if model.config.model_type == "llama":
            logits = logits[-len(example["input_ids"]) :]  # without the rows of a prompt
        logits = logits.flatten()
        if isinstance(example.get("label"), int):
            labelled += 1
            correct += int(logits.argmax().item() == example["label"])
        ours = given.get(f"logits.{index}")
        if ours is None or ours.numel() != logits.numel():
            broken.append(f"logits.{index}: {'missing' if ours is None else f'shape {tuple(ours.shape)}'}")
            continue
        difference = (ours.flatten().float() - logits).abs().max().item()
        if not difference <= args.tolerance:  # also true for NaN
            print(f"logits.{index}: ours {ours.flatten().tolist()}, reference {logits.tolist()}")
        if not difference <= worst:
            worst = difference
    extra = len(given) - (len(lines) - len(broken))
    for line in broken:
        print(line)
    if extra:
        print(f"note: {extra} tensors in {args.logits.name} were not compared")
    if labelled:
        print(f"accuracy of the reference: {correct}/{labelled}")
    print(f"examples: {len(lines)}, max absolute difference: {worst:.3e}, tolerance: {args.tolerance:.1e}")
    passed = worst <= args.tolerance and not broken and lines
    print("ok" if passed else "FAILED")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
