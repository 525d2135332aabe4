"""Writes a run of structured diff pruning, from the paper (Guo et al., 2020, arXiv:2012.07463) in float64.

Checked by reading against github.com/dguo98/DiffPruning, examples/run_glue_diffpruning.py and run_glue_mag.py (commit 085fa7d): gates
of numbers and of tensors, hard concrete at temperature 1, whose penalties are added; gates in an optimizer of their own, at a rate that
does not fall and without weight decay. Otherwise than there all gradients are clipped together, and what is left at the end is chosen by
the gates without noise.

Usage: python scripts/golden/diff_pruning.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, in_float64, save
from methods import ROBERTA, base_model
from noise import EXAMPLES, KEY, STEPS, data, linear, pick, rows, uniform_like
from torch.func import functional_call

FOLDER = REPO / "peft-partial" / "tests" / "golden" / "diff-pruning-run"
RATE, GATE_RATE, DECAY, CLIP, EPSILON, SEED = 1e-2, 0.1, 0.1, 1.0, 1e-3, 5
ALPHA, LOWER, UPPER, PENALTY, LEFT = 0.6, -1.2, 1.4, 3e-5, 0.015
STORED = ("roberta.embeddings.word", "roberta.encoder.layer.1.")


def gate(alpha, u):
    logits = alpha if u is None else alpha + torch.logit(u.clamp(1e-4, 1 - 1e-4))
    return (torch.sigmoid(logits) * (UPPER - LOWER) + LOWER).clamp(0, 1)


def run(model, inputs):
    model.eval()
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("classifier")}
    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    w = {name: torch.zeros_like(p, requires_grad=True) for name, p in base.items()}
    alpha = {name: torch.full_like(p, ALPHA, requires_grad=True) for name, p in base.items()}
    group = {name: torch.full((1,), ALPHA, dtype=torch.float64, requires_grad=True) for name in base}
    log_ratio = torch.log(torch.tensor(-LOWER / UPPER, dtype=torch.float64))
    gates = [*alpha.values(), *group.values()]
    differences = [*w.values(), *head]
    slow = torch.optim.AdamW(differences, lr=RATE, eps=EPSILON, weight_decay=DECAY)
    fast = torch.optim.AdamW(gates, lr=GATE_RATE, eps=EPSILON, weight_decay=0.0)
    losses, closed = [], []
    for step in range(STEPS):
        z, tensors = {}, {}
        for name in base:
            z[name] = gate(alpha[name], uniform_like(base[name], SEED, f"step {step}: gates.", name))
            random = uniform_like(base[name].flatten()[:1], SEED, f"step {step}: groups.", name)
            tensors[name] = base[name] + z[name] * gate(group[name], random) * w[name]
        loss = functional_call(model, tensors, kwargs=pick(inputs, rows(step))).loss
        loss = loss + PENALTY * sum(torch.sigmoid(a - log_ratio).sum() for a in gates)
        for optimizer in (slow, fast):
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(differences + gates, CLIP)
        for parameter_group in slow.param_groups:
            parameter_group["lr"] = linear(RATE, step)
        slow.step()
        fast.step()
        losses.append(loss.detach())
        closed.append(sum((gate == 0).sum() for gate in z.values()))
    gated = {name: (gate(alpha[name], None) * gate(group[name], None) * w[name]).detach() for name in base}
    sizes = torch.cat([g.flatten() for g in gated.values()]).abs()
    ordered = sizes.sort(descending=True).values
    count = int(LEFT * len(sizes))
    print(f"  the differences at the edge are {ordered[count - 1] - ordered[count]:.1e} of {ordered[count]:.1e} apart")
    left = {name: torch.where(g.abs() >= ordered[count - 1], g, 0.0) for name, g in gated.items()}
    with torch.no_grad():
        pruned = {name: base[name] + left[name] for name in base}
        logits = functional_call(model, pruned, kwargs=pick(inputs, range(EXAMPLES))).logits
    found = {"losses": torch.stack(losses), "closed": torch.stack(closed), "logits": logits}
    stored = [name for name in base if name.startswith(STORED)]
    for kind, values in [("differences", w), ("gates", alpha), ("groups", group), ("left", left)]:
        found |= {f"{kind}.{KEY}{name}": values[name] for name in stored}
    return found


def main():
    os.chdir(MODELS)
    fresh(FOLDER)
    inputs = data("diff-pruning-run")
    save(FOLDER / "inputs.safetensors", inputs)
    model = base_model(ROBERTA, attn_implementation="eager").double()
    with in_float64():
        found = run(model, inputs)
    print("  losses", " ".join(f"{x:.4f}" for x in found["losses"].tolist()))
    print("  closed gates", found["closed"].tolist())
    save(FOLDER / "expected.safetensors", {key: value.float() for key, value in found.items()})


if __name__ == "__main__":
    main()
