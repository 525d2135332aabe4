"""Writes runs of FISH Mask and SAM, from the papers (Sung et al., 2021, arXiv:2111.09839; Fu et al., 2022, arXiv:2211.15583) in float64.

Checked by reading against github.com/varunnair18/FISH, transformers/examples/text-classification/generate_masks.py (commit 8940737):
the squared gradients of single examples, summed; the largest of all tensors but the head's. And against
github.com/fuzihaofzh/AnalyzeParameterEfficientFinetune, src/runner.py (commit 3242c91): the gradients of batches, summed with their signs,
the largest sizes of each tensor (`per_tensor`), none of the head's. Otherwise than there no dropout, no clipping before the choice, weight
decay does not reach what is not trained, and FISH's budget is a share of the backbone.

Usage: python scripts/golden/masked_update.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, in_float64, save
from methods import ROBERTA, base_model
from noise import EXAMPLES, KEY, SIZE, STEPS, Random, data, linear, pick, rows

TESTS = REPO / "peft-partial" / "tests" / "golden"
RATE, DECAY, CLIP, EPSILON, SEED = 1e-2, 0.1, 0.5, 1e-3, 3
KEPT, SAMPLES = 0.02, 15
# What `final` holds of the many tensors.
STORED = ("roberta.embeddings.word", "roberta.encoder.layer.1.", "classifier.")


def backbone(model):
    return {name: p for name, p in model.named_parameters() if not name.startswith("classifier")}


def gradients(model, inputs, places):
    model.zero_grad()
    model(**pick(inputs, places)).loss.backward()
    return {name: p.grad.clone() for name, p in backbone(model).items()}


def order():
    return Random(SEED, "examples before the first step").permutation(EXAMPLES)


def fisher(model, inputs):
    scores = {name: torch.zeros_like(p) for name, p in backbone(model).items()}
    for place in order()[:SAMPLES]:
        for name, gradient in gradients(model, inputs, [place]).items():
            scores[name] += gradient**2
    return scores


def summed(model, inputs):
    sums = {name: torch.zeros_like(p) for name, p in backbone(model).items()}
    for start in range(0, EXAMPLES, SIZE):
        for name, gradient in gradients(model, inputs, order()[start : start + SIZE]).items():
            sums[name] += gradient
    return {name: g.abs() for name, g in sums.items()}


def largest(scores):
    """1 for the largest of all, and how far the scores at the edge are apart, of the smaller."""
    ordered = torch.cat([score.flatten() for score in scores.values()]).sort(descending=True).values
    count = int(KEPT * len(ordered))
    masks = {name: torch.zeros_like(score) for name, score in scores.items()}
    if count:
        masks = {name: (score >= ordered[count - 1]).double() for name, score in scores.items()}
    return masks, ((ordered[count - 1] - ordered[count]) / ordered[count]).item() if count else 1.0


def chosen(model, inputs, case):
    if case == "fish-mask-run":
        return largest(fisher(model, inputs))
    scores = summed(model, inputs)
    if case == "sam-run":
        return largest(scores)
    each = [largest({name: score}) for name, score in scores.items()]
    return {name: mask for masks, _ in each for name, mask in masks.items()}, min(margin for _, margin in each)


def run(model, inputs, case):
    model.eval()
    masks, margin = chosen(model, inputs, case)
    print(f"  {case}: the scores at the edge are {margin:.1e} apart")
    found = {f"mask.{KEY}{name}": mask for name, mask in masks.items()}
    start = {name: p.detach().clone() for name, p in backbone(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=DECAY)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(**pick(inputs, rows(step))).loss
        loss.backward()
        for name, parameter in backbone(model).items():
            parameter.grad *= masks[name]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = linear(RATE, step)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in backbone(model).items():
                parameter.copy_(torch.where(masks[name] == 0, start[name], parameter))
        losses.append(loss.detach())
    found["losses"] = torch.stack(losses)
    with torch.no_grad():
        found["logits"] = model(**pick(inputs, range(EXAMPLES))).logits
    return found | {
        f"final.{KEY}{name}": parameter for name, parameter in model.named_parameters() if name.startswith(STORED)
    }


def main():
    os.chdir(MODELS)
    for case in ("fish-mask-run", "sam-run", "sam-per-tensor-run"):
        folder = fresh(TESTS / case)
        inputs = data(case)
        save(folder / "inputs.safetensors", inputs)
        model = base_model(ROBERTA, attn_implementation="eager").double()
        with in_float64():
            found = run(model, inputs, case)
        print("  losses", " ".join(f"{x:.4f}" for x in found["losses"].tolist()))
        masks = {key: value.half() for key, value in found.items() if key.startswith("mask.")}
        rest = {key: value.float() for key, value in found.items() if not key.startswith("mask.")}
        save(folder / "expected.safetensors", masks | rest)


if __name__ == "__main__":
    main()
