"""CoDA's entropy weight and steps of the ascent on SST-2: what they do to the chosen tokens' shares l, and to a short training.

For each setting a row: the mean l of the chosen tokens and sum l / k (1 where the ascent has converged), means over all layers of
development sentences, with the routers of the start and with those that the program has trained; then accuracy and loss on the
development set and the mean loss of the last tenth of the steps. The layers are routed here in PyTorch, one sentence at a time, by
shares in float64.

    python3 scripts/bench/coda_epsilon.py PEFT MODEL GLUE/SST-2 OUT [--grid 1:20,0.3:20,..] [--seeds 0,1] [--steps 200]

PEFT is the program; MODEL is a BERT, such as the one that `cargo xtask real` fetches; OUT gets a directory for each training.
"""

import argparse
import json
import math
import subprocess
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import load_file
from torch.nn.functional import relu
from transformers import AutoModel, AutoTokenizer

REDUCTION, GRID = 3, "1:20,0.3:20,0.1:20,0.03:50"


def soft_top_k(scores, k, epsilon, iterations):
    """As in the method's file."""
    e, b = 4.0, -scores
    for _ in range(iterations):
        e = max(e, epsilon)
        a = e * (math.log(k) - torch.logsumexp((scores + b) / e, 0))
        b = -relu(scores + a)
        shares = torch.exp((scores + a + b) / e)
        e *= 0.7
    return shares


@torch.no_grad()
def shares(model, tokenizer, sentences, own, epsilon, iterations):
    """The mean l of the chosen tokens, and sum l / k, over layers and sentences that are long enough to choose from."""
    chosen_shares, sums = [], []
    for sentence in sentences:
        inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=128)
        x = model.embeddings(inputs["input_ids"])
        k = math.ceil(x.shape[1] / REDUCTION)
        for layer, tensors in zip(model.encoder.layer, own):
            scores = x[0] @ tensors["router"]
            l = soft_top_k(scores.double(), k, epsilon, iterations).float()
            chosen = scores.topk(k).indices
            chosen_shares.append(l[chosen].mean().item())
            sums.append(l.sum().item() / k)
            added = relu(x @ tensors["down.weight"].T + tensors["down.bias"]) @ tensors["up.weight"].T + tensors["up.bias"]
            update = (layer(x[:, chosen])[0] - x[:, chosen]) * l[chosen, None]
            x = x.index_add(1, chosen, update) + added
    return fmean(chosen_shares), fmean(sums)


def start(model, width, seed):
    """Routers as drawn at the start, adapters that add nothing."""
    gen, d = torch.Generator().manual_seed(seed), model.config.hidden_size
    zeros = {"down.weight": (width, d), "down.bias": width, "up.weight": (d, width), "up.bias": d}
    drawn = lambda: {"router": torch.randn(d, generator=gen) * 0.02}
    return [drawn() | {name: torch.zeros(shape) for name, shape in zeros.items()} for _ in model.encoder.layer]


def trained(folder, layers):
    stored = load_file(folder / "adapter_model.safetensors")
    leaves = ["router", "down.weight", "down.bias", "up.weight", "up.bias"]
    path = "base_model.model.bert.encoder.layer.{}.output.adapter_{}"
    return [{leaf: stored[path.format(layer, leaf)] for leaf in leaves} for layer in range(layers)]


def train(args, epsilon, iterations, seed):
    """The directory of the adapter, accuracy and loss on the development set, and the mean loss of the last steps."""
    out = args.out / f"{epsilon}-{iterations}-{seed}"
    log = out.with_suffix(f"{out.suffix}.jsonl")
    if not out.exists():
        sets = [f"bottleneck={args.width}", f"epsilon={epsilon}", f"iterations={iterations}", f"reduction={REDUCTION}"]
        command = [args.peft, "train", "--method", "coda", "--model", args.model, "--task", "sst2", "--data", args.data]
        command += [part for setting in sets for part in ("--set", setting)]
        command += ["--steps", args.steps, "--batch-size", args.batch_size, "--lr", args.rate, "--warmup", 0.06]
        command += ["--threads", args.threads, "--seed", seed, "--log", log, "--output", out]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    evaluated = next(line for line in reversed(lines) if "eval_accuracy" in line)
    return out, evaluated["eval_accuracy"], evaluated["eval_loss"], fmean(losses[-max(1, len(losses) // 10) :])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("peft", "model", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--grid", default=GRID)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", default="1e-3")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--start-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = AutoModel.from_pretrained(args.model).eval(), AutoTokenizer.from_pretrained(args.model)
    lines = (args.data / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sentences = [line.split("\t")[0] for line in lines[: args.sentences]]
    measure = lambda own, *ascent: shares(model, tokenizer, sentences, own, *ascent)
    print("| epsilon | steps of the ascent | l, sum l / k at the start | after training | accuracy | loss | training loss |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for setting in args.grid.split(","):
        epsilon, iterations = float(setting.split(":")[0]), int(setting.split(":")[1])
        rows = []
        for seed in map(int, args.seeds.split(",")):
            row = [*measure(start(model, args.width, seed), epsilon, iterations)]
            if not args.start_only:
                folder, *scores = train(args, epsilon, iterations, seed)
                row += [*measure(trained(folder, len(model.encoder.layer)), epsilon, iterations), *scores]
            rows.append(row)
        means = [f"{fmean(column):.3f}" for column in zip(*rows)]
        pairs = [", ".join(means[i : i + 2]) for i in range(0, min(4, len(means)), 2)]
        each = [f"{mean} ({' '.join(f'{row[4 + i]:.3f}' for row in rows)})" for i, mean in enumerate(means[4:])]
        print(f"| {epsilon:g} | {iterations} | {' | '.join(pairs + each)} |", flush=True)


if __name__ == "__main__":
    main()
