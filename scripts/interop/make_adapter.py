#!/usr/bin/env python3
"""Creates a random adapter with HF PEFT, for this library to load.

    make_adapter.py MODEL_DIR METHOD OUT_DIR      METHOD: lora, ia3, prompt, prefix or p-tuning

An encoder gets a classification head, a T5 or a LLaMA stays what it is. All tensors are random and none is zero: also lora_B
and the classification head, which come untrained otherwise. The outputs of the result can be checked with check_adapter.py.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers.utils import logging


FAMILIES = {
    "t5": (AutoModelForSeq2SeqLM, TaskType.SEQ_2_SEQ_LM, ["q", "v"]),
    "llama": (AutoModelForCausalLM, TaskType.CAUSAL_LM, ["q_proj", "v_proj"]),
}
ENCODER = (AutoModelForSequenceClassification, TaskType.SEQ_CLS, ["query", "value"])


def config(method, task, attention, args):
    if method == "lora":
        return LoraConfig(task_type=task, r=args.rank, lora_alpha=2 * args.rank, target_modules=attention)
    if method == "ia3":
        return IA3Config(task_type=task)
    if method == "prompt":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=args.virtual_tokens)
    if method == "p-tuning":
        return PromptEncoderConfig(task_type=task, num_virtual_tokens=args.virtual_tokens, encoder_hidden_size=16)
    return PrefixTuningConfig(task_type=task, num_virtual_tokens=args.virtual_tokens)


@torch.no_grad()
def randomize(model, seed):
    """Noise of the size of the weights it is combined with, so that the outputs move but stay sane."""
    gen = torch.Generator().manual_seed(seed)
    word = model.get_input_embeddings().weight.std().item()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=gen)
        if "ia3_l" in name:
            value = 1 + 0.3 * noise
        elif "lora_" in name:
            # A and B share the size evenly, so that B A has elements of about in_features ** -0.5.
            width = parameter.shape[1] if "lora_A" in name else parameter.shape[0]
            value = noise * 0.5 * width**-0.25
        elif "prompt_encoder" in name and "mlp_head" not in name:
            prompt = parameter.shape[1] == model.get_input_embeddings().weight.shape[1]
            value = noise * (word if prompt else 0.5)
        else:  # the head, and the maps of P-tuning
            value = noise * (0.1 if parameter.dim() == 1 else parameter.shape[1] ** -0.5)
        parameter.copy_(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("method", choices=["lora", "ia3", "prompt", "prefix", "p-tuning"])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--virtual-tokens", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind, task, attention = FAMILIES.get(AutoConfig.from_pretrained(args.model_dir).model_type, ENCODER)
    head = {"num_labels": args.labels, "ignore_mismatched_sizes": True} if kind is ENCODER[0] else {}
    base, report = kind.from_pretrained(args.model_dir, output_loading_info=True, **head)
    absent = sorted(key for key in report["missing_keys"] if not key.startswith("classifier."))
    if absent:
        sys.exit(f"the model folder lacks {absent}, which the adapter does not contain")
    # The name of the base, not its place on this machine, goes into adapter_config.json.
    base.name_or_path = base.config._name_or_path = args.model_dir.resolve().name
    model = get_peft_model(base.float(), config(args.method, task, attention, args))
    randomize(model, args.seed)
    model.save_pretrained(args.out_dir, save_embedding_layers=False)
    (args.out_dir / "README.md").unlink(missing_ok=True)
    print(f"{args.out_dir}: {args.method}, {model.get_nb_trainable_parameters()[0]} parameters")


if __name__ == "__main__":
    main()
