"""One training step by `peft bench step` and by Hugging Face PEFT on PyTorch, in turn on the same machine.

`--method lora`, both: RoBERTa with random weights, LoRA r 8 on query and value, a classification head, dropout on, f32, AdamW, the same
number of threads. `--method qlora`, both: a LLaMA with random weights whose linear maps are NF4 (PEFT's by bitsandbytes' CPU backend),
LoRA r 64 on all of them, computed in f32, every token a label; PEFT's with activations recomputed if --checkpointing is given. Each round is a process of its own for each side, so that peak memory is that of one side. Prints the median of the
rounds' medians, and the ratios. Needs torch, transformers and peft (scripts/golden/requirements.txt).

    python3 scripts/bench/side_by_side.py [--program target/debug/peft] [--model roberta-base] [--rounds 3] [--steps 3]
    python3 scripts/bench/side_by_side.py --method qlora --model tinyllama-1.1b --batch 1 --seq 512
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

SHAPES = {
    "roberta-base": dict(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072),
    "roberta-large": dict(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096),
}


LLAMA = {
    "tinyllama-1.1b": dict(num_hidden_layers=22, hidden_size=2048, num_attention_heads=32, num_key_value_heads=4, intermediate_size=5632),
}


def roberta(args):
    from peft import LoraConfig, get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **SHAPES[args.model])
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=8, target_modules=["query", "value"])
    return get_peft_model(RobertaForSequenceClassification(config), lora)


def packed_llama(args):
    """Its matrices are packed one by one, so that the peak is not that of a dense model."""
    import bitsandbytes as bnb
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from torch import nn
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(vocab_size=32000, max_position_embeddings=2048, **LLAMA[args.model])
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "layers" in name:
            dense = torch.randn(module.out_features, module.in_features) * 0.02
            packed = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4", device="meta"
            )
            packed.weight = bnb.nn.Params4bit(dense, requires_grad=False, quant_type="nf4").to("cpu")
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, packed)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            parent, _, leaf = name.rpartition(".")
            values = torch.ones(parameter.shape) if parameter.dim() == 1 else torch.randn(parameter.shape) * 0.02
            setattr(model.get_submodule(parent), leaf, nn.Parameter(values))
    model.is_loaded_in_4bit = True
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.checkpointing)
    lora = LoraConfig(task_type="CAUSAL_LM", r=64, lora_alpha=64, target_modules="all-linear")
    return get_peft_model(model, lora)


def reference(args):
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = (packed_llama if args.method == "qlora" else roberta)(args).train()
    config = model.config
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    ids = torch.randint(config.vocab_size // 4, config.vocab_size, (args.batch, args.seq))
    labels = ids if args.method == "qlora" else torch.arange(args.batch) % 2

    def step():
        start = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return time.perf_counter() - start

    step()
    seconds = [step() for _ in range(args.steps)]
    report = {
        "seconds": {"best": min(seconds), "median": statistics.median(seconds)},
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "trainable": sum(p.numel() for p in trained),
    }
    print(json.dumps(report))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/debug/peft")
    parser.add_argument("--method", default="lora", choices=["lora", "qlora"])
    parser.add_argument("--model", default="roberta-base", choices=[*SHAPES, *LLAMA])
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.model in LLAMA) != (args.method == "qlora"):
        parser.error(f"--method {args.method} is for {', '.join(LLAMA if args.method == 'qlora' else SHAPES)}")
    if args.reference:
        return reference(args)

    sizes = ["--batch", args.batch, "--seq", args.seq, "--steps", args.steps, "--threads", args.threads]
    packing = ["--base", "nf4", "--set", "r=64", "--set", "lora_alpha=64"] if args.method == "qlora" else []
    ours = [args.program, "bench", "step", "--model", f"shape:{args.model}", "--method", args.method, *packing, *sizes]
    theirs = [sys.executable, __file__, "--reference", "--method", args.method, "--model", args.model, *sizes]
    theirs += ["--checkpointing"] if args.checkpointing else []
    sides = {"ours": (ours, []), "pytorch": (theirs, [])}
    for _ in range(args.rounds):
        for name, (command, reports) in sides.items():
            output = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE).stdout
            reports.append(json.loads(output))
            print(name, json.dumps(reports[-1]), file=sys.stderr)
    if len({report["trainable"] for _, reports in sides.values() for report in reports}) != 1:
        sys.exit("the two sides do not train the same number of parameters")

    def median(name, value):
        return statistics.median(value(report) for report in sides[name][1])

    result = {}
    for name in sides:
        result[name] = {
            "seconds": median(name, lambda r: r["seconds"]["median"]),
            "peak_bytes": median(name, lambda r: r["peak_bytes"]),
        }
    result["ratio"] = {key: result["ours"][key] / result["pytorch"][key] for key in ("seconds", "peak_bytes")}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
