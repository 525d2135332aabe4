"""One training step of LoRA by `peft bench step` and by Hugging Face PEFT on PyTorch, in turn on the same machine.

Both: RoBERTa with random weights, LoRA r 8 on query and value, a classification head, dropout on, f32, AdamW, the same number of
threads. Each round is a process of its own for each side, so that peak memory is that of one side. Prints the median of the
rounds' medians, and the ratios. Needs torch, transformers and peft (scripts/golden/requirements.txt).

    python3 scripts/bench/side_by_side.py [--program target/debug/peft] [--model roberta-base] [--rounds 3] [--steps 3]
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


def reference(args):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **SHAPES[args.model])
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=8, target_modules=["query", "value"])
    model = get_peft_model(RobertaForSequenceClassification(config), lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    ids = torch.randint(config.vocab_size // 4, config.vocab_size, (args.batch, args.seq))
    labels = torch.arange(args.batch) % 2

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
    parser.add_argument("--model", default="roberta-base", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reference:
        return reference(args)

    sizes = ["--batch", args.batch, "--seq", args.seq, "--steps", args.steps, "--threads", args.threads]
    ours = [args.program, "bench", "step", "--model", f"shape:{args.model}", "--method", "lora", *sizes]
    theirs = [sys.executable, __file__, "--reference", "--model", args.model, *sizes]
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
