"""Writes runs of Child-Tuning, F and D, from the paper (Xu et al., 2021, arXiv:2109.05687) in float64.

Checked by reading against github.com/alibaba/AliceMind, ChildTuning (commit c17b177): D squares the gradients of the training
batches, those of each tensor clipped, keeps the largest of all tensors with `layer` in their names, and leaves the others as they
are; F divides by p. Otherwise than there weight decay does not reach what D leaves out, which the norm for clipping does not count
either, F leaves the head alone, no dropout.

Usage: python scripts/golden/child_tuning.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, in_float64, save
from methods import ROBERTA, base_model
from noise import EXAMPLES, KEY, SIZE, STEPS, Random, data, linear, pick, rows, uniform_like

FOLDER = REPO / "peft-partial" / "tests" / "golden" / "child-tuning-run"
RATE, DECAY, CLIP, EPSILON, SEED = 1e-2, 0.1, 0.5, 1e-3, 3
KEPT = {"d": 0.3, "f": 0.4}
# What `final` holds of the many tensors.
STORED = ("roberta.embeddings.word", "roberta.encoder.layer.1.", "classifier.")


def fisher(model, inputs):
    scores = {name: torch.zeros_like(p) for name, p in model.named_parameters() if "layer" in name}
    order = Random(SEED, "examples before the first step").permutation(EXAMPLES)
    for start in range(0, EXAMPLES, SIZE):
        model.zero_grad()
        model(**pick(inputs, order[start : start + SIZE])).loss.backward()
        for name, parameter in model.named_parameters():
            if name in scores:
                torch.nn.utils.clip_grad_norm_(parameter, CLIP)
                scores[name] += parameter.grad**2
    return scores


def child(scores, share):
    """1 in the child, and how far the scores at its edge are apart, of the smaller."""
    every = torch.cat([score.flatten() for score in scores.values()])
    ordered = every.sort(descending=True).values
    count = int(share * len(every))
    margin = (ordered[count - 1] - ordered[count]) / ordered[count]
    return {name: (score >= ordered[count - 1]).double() for name, score in scores.items()}, margin


def run(model, inputs, mode):
    model.eval()
    found = {}
    masks = {}
    if mode == "d":
        scores = fisher(model, inputs)
        masks, margin = child(scores, KEPT["d"])
        print(f"  d: the scores at the child's edge are {margin:.1e} apart")
        found |= {f"mask.{KEY}{name}": mask for name, mask in masks.items()}
    # Where D leaves a number out it keeps its bits: neither gradient nor decay reaches it.
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=DECAY)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(**pick(inputs, rows(step))).loss
        loss.backward()
        for name, mask in masks.items():
            dict(model.named_parameters())[name].grad.mul_(mask)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        key = Random(SEED, f"sample of step {step}").bits()
        for name, parameter in model.named_parameters():
            if mode == "f" and not name.startswith("classifier"):
                drawn = uniform_like(parameter, key, "", name)
                parameter.grad *= (drawn <= KEPT["f"]) / KEPT["f"]
        for group in optimizer.param_groups:
            group["lr"] = linear(RATE, step)
        optimizer.step()
        with torch.no_grad():
            for name, mask in masks.items():
                parameter = dict(model.named_parameters())[name]
                parameter.copy_(torch.where(mask == 0, start[name], parameter))
        losses.append(loss.detach())
    found["losses"] = torch.stack(losses)
    with torch.no_grad():
        found["logits"] = model(**pick(inputs, range(EXAMPLES))).logits
    return found | {
        f"final.{KEY}{name}": parameter for name, parameter in model.named_parameters() if name.startswith(STORED)
    }


def main():
    os.chdir(MODELS)
    fresh(FOLDER)
    inputs = data("child-tuning-run")
    save(FOLDER / "inputs.safetensors", inputs)
    expected = {}
    for mode in KEPT:
        model = base_model(ROBERTA, attn_implementation="eager").double()
        with in_float64():
            found = run(model, inputs, mode)
        print(f"  {mode}: losses", " ".join(f"{x:.4f}" for x in found["losses"].tolist()))
        masks = {f"{mode}.{key}": value.half() for key, value in found.items() if key.startswith("mask.")}
        rest = {f"{mode}.{key}": value.float() for key, value in found.items() if not key.startswith("mask.")}
        expected |= masks | rest
    save(FOLDER / "expected.safetensors", expected)


if __name__ == "__main__":
    main()
