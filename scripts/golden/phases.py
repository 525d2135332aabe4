"""Writes runs in phases: LT-SFT and BitFit whose updates are pruned, from the papers (Ansell et al., 2022, arXiv:2110.07560; Lawton et
al., 2023, arXiv:2305.16597) in float64.

LT-SFT was checked by reading against github.com/cambridgeltl/composable-sft, src/sft/lt_sft.py (commit 0551747): the largest differences
of all tensors but the head's, after which all begin from the base again. Otherwise than there the head goes on, weight decay does not reach what is not
trained, no dropout. Of the other no code is known.

Usage: python scripts/golden/phases.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, in_float64, save
from masked_update import CLIP, DECAY, EPSILON, RATE, SEED, STORED, backbone, largest
from methods import ROBERTA, base_model
from noise import EXAMPLES, KEY, SIZE, STEPS, Random, data, pick, rows
from torch.func import functional_call

TESTS = REPO / "peft-partial" / "tests" / "golden"
FULL, KEPT_BIASES = 4, 0.3


def optimizer_of(parameters):
    return torch.optim.AdamW(parameters, lr=RATE, eps=EPSILON, weight_decay=DECAY)


def steps(first, count, optimizer, parameters, loss_of, masks=None):
    """Steps `first` to below `first + count` of the run, with a rate that falls to 0 over them."""
    losses = []
    for step in range(count):
        optimizer.zero_grad()
        loss = loss_of(rows(first + step))
        loss.backward()
        for parameter, mask in masks or []:
            parameter.grad *= mask
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (count - step) / count
        kept = [parameter.detach().clone() for parameter, _ in masks or []]
        optimizer.step()
        with torch.no_grad():
            for (parameter, mask), before in zip(masks or [], kept):
                parameter.copy_(torch.where(mask == 0, before, parameter))
        losses.append(loss.detach())
    return losses


def lt_sft(model, inputs):
    start = {name: p.detach().clone() for name, p in backbone(model).items()}
    every = list(model.parameters())

    def loss_of(places):
        return model(**pick(inputs, places)).loss

    losses = steps(0, FULL, optimizer_of(every), every, loss_of)
    moved = {name: (p.detach() - start[name]).abs() for name, p in backbone(model).items()}
    masks, margin = largest(moved)
    print(f"  the differences at the edge are {margin:.1e} apart")
    with torch.no_grad():
        for name, parameter in backbone(model).items():
            parameter.copy_(start[name])
    held = [(parameter, masks[name]) for name, parameter in backbone(model).items()]
    losses += steps(FULL, STEPS - FULL, optimizer_of(every), every, loss_of, held)
    found = {f"mask.{KEY}{name}": mask for name, mask in masks.items()} | {"losses": torch.stack(losses)}
    with torch.no_grad():
        found["logits"] = model(**pick(inputs, range(EXAMPLES))).logits
    return found | {f"final.{KEY}{name}": p for name, p in model.named_parameters() if name.startswith(STORED)}


def pruned(model, inputs, whole):
    base = {name: p.detach().clone() for name, p in backbone(model).items() if name.endswith("bias")}
    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    updates = {name: torch.zeros_like(b, requires_grad=True) for name, b in base.items()}
    masks = {name: torch.ones_like(b) for name, b in base.items()}
    every = [*updates.values(), *head]

    def outputs(places):
        tensors = {name: base[name] + masks[name] * updates[name] for name in base}
        return functional_call(model, tensors, kwargs=pick(inputs, places))

    half = STEPS // 2
    losses = steps(0, half, optimizer_of(every), every, lambda places: outputs(places).loss)
    order = Random(SEED, "examples before the first step").permutation(EXAMPLES)
    sums = {name: torch.zeros_like(b) for name, b in base.items()}
    for begin in range(0, EXAMPLES, SIZE):
        for parameter in every:
            parameter.grad = None
        outputs(order[begin : begin + SIZE]).loss.backward()
        for name, update in updates.items():
            sums[name] += update.grad
    scores = {name: (-updates[name] * sums[name]).detach() for name in base}
    budget = int(KEPT_BIASES * sum(len(b) for b in base.values()))
    if whole:
        for name in sorted(base, key=lambda name: scores[name].sum(), reverse=True):
            fits = len(base[name]) <= budget
            masks[name] = torch.full_like(base[name], float(fits))
            budget -= len(base[name]) if fits else 0
    else:
        ordered = torch.cat(list(scores.values())).sort(descending=True).values
        print(f"  the scores at the edge: {ordered[budget - 1]:.3e} and {ordered[budget]:.3e}")
        masks = {name: (score >= ordered[budget - 1]).double() for name, score in scores.items()}
    with torch.no_grad():
        for update in updates.values():
            update.zero_()
    losses += steps(half, STEPS - half, optimizer_of(every), every, lambda places: outputs(places).loss)
    found = {f"mask.{KEY}{name}": mask for name, mask in masks.items()} | {"losses": torch.stack(losses)}
    found |= {f"updates.{KEY}{name}": update for name, update in updates.items()}
    with torch.no_grad():
        found["logits"] = outputs(range(EXAMPLES)).logits
    return found


CASES = {
    "lt-sft-run": lt_sft,
    "u-bitfit-run": lambda model, inputs: pruned(model, inputs, False),
    "s-bitfit-run": lambda model, inputs: pruned(model, inputs, True),
}


def main():
    os.chdir(MODELS)
    for case, run in CASES.items():
        folder = fresh(TESTS / case)
        inputs = data(case)
        save(folder / "inputs.safetensors", inputs)
        model = base_model(ROBERTA, attn_implementation="eager").double()
        model.eval()
        with in_float64():
            found = run(model, inputs)
        print(f"  {case}: losses", " ".join(f"{x:.4f}" for x in found["losses"].tolist()))
        masks = {key: value.half() for key, value in found.items() if key.startswith("mask.")}
        rest = {key: value.float() for key, value in found.items() if not key.startswith("mask.")}
        save(folder / "expected.safetensors", masks | rest)


if __name__ == "__main__":
    main()
