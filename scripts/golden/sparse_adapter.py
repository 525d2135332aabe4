"""Writes a run of SparseAdapter on sequential adapters, from the paper (He et al., 2022, arXiv:2210.04284) in float64.

Checked by reading against github.com/Shwai-He/SparseAdapter, petl/petl_factory.py and src/transformers/pruning (commit b190084): the
adapters with a normalization in front and a ReLU after both sub-layers, masks over their matrices by scores that are summed over the
run's batches, half as large for GraSP, and kept for good. Otherwise than there the gradients of the scores do not run into the first
step's, and the random numbers are the library's (`noise.py`).

Usage: python scripts/golden/sparse_adapter.py   (after models.py)
"""

import math
import os

import torch
from common import MODELS, REPO, fresh, in_float64, save
from methods import ROBERTA, base_model
from noise import EXAMPLES, SIZE, STEPS, Random, data, linear, pick, rows
from torch.nn import functional

FOLDER = REPO / "peft-unified" / "tests" / "golden" / "sparse-adapter-run"
WIDTH, STD, SPARSITY, RATE, DECAY, CLIP, EPSILON, SEED = 5, 0.3, 0.4, 1e-2, 0.1, 1.0, 1e-3, 7
SUBLAYERS = {"attention.output.dense": "self_attention", "output.dense": "feed_forward"}


def drawn(name, rows, columns):
    random = Random(SEED, name)
    numbers = [random.normal() * STD for _ in range(rows * columns)]
    return torch.tensor(numbers, dtype=torch.float64).float().double().view(rows, columns)


def fresh_adapters(hidden, layers):
    """By the names of the library's records, matrices as it holds them."""
    constant = lambda value, size: torch.full((size,), value, dtype=torch.float64)
    tensors = {}
    for site in (f"encoder.{layer}.{part}" for layer in range(layers) for part in SUBLAYERS.values()):
        tensors |= {
            f"adapters.{site}.norm.gain": constant(1.0, hidden),
            f"adapters.{site}.norm.bias": constant(0.0, hidden),
            f"adapters.{site}.down.weight": drawn(f"sequential.{site}.down", hidden, WIDTH),
            f"adapters.{site}.down.bias": constant(0.0, WIDTH),
            f"adapters.{site}.up.weight": drawn(f"sequential.{site}.up", WIDTH, hidden),
            f"adapters.{site}.up.bias": constant(0.0, hidden),
        }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


class Adapted:
    """A model with adapters behind the last maps of its sub-layers; a matrix counts as masked."""

    def __init__(self, model, tensors):
        self.model, self.tensors, self.act = model, tensors, functional.relu
        self.masks = {name: torch.ones_like(t) for name, t in tensors.items() if name.endswith(".weight")}
        for layer, block in enumerate(model.roberta.encoder.layer):
            for module, part in SUBLAYERS.items():
                block.get_submodule(module).register_forward_hook(self.hook(f"adapters.encoder.{layer}.{part}."))

    def hook(self, site):
        def after(_, __, h):
            of = lambda name: self.tensors[site + name] * self.masks.get(site + name, 1.0)
            x = functional.layer_norm(h, h.shape[-1:], of("norm.gain"), of("norm.bias"), 1e-5)
            x = self.act(x @ of("down.weight") + of("down.bias"))
            return h + x @ of("up.weight") + of("up.bias")

        return after

    def loss(self, inputs, places):
        return self.model(**pick(inputs, places)).loss


def batches(size):
    order = Random(SEED, "examples before the first step").permutation(EXAMPLES)
    return [order[start : start + size] for start in range(0, EXAMPLES, size)]


def scores(adapted, inputs):
    weights = {name: adapted.tensors[name] for name in adapted.masks}
    gradients = lambda places, graph: torch.autograd.grad(
        adapted.loss(inputs, places), list(weights.values()), create_graph=graph
    )
    total = lambda parts: [sum(part) for part in zip(*parts)]
    g = total([gradients(places, False) for places in batches(SIZE)])
    snip = {name: (w * g).abs() for (name, w), g in zip(weights.items(), g)}
    # Smooth, since a difference of gradients, as the library has it, sees the kinks of a ReLU, and a second derivative does not.
    adapted.act = functional.gelu
    g = total([gradients(places, False) for places in batches(SIZE // 2)])
    changes = []
    for places in batches(SIZE // 2):
        along = sum((a * b).sum() for a, b in zip(g, gradients(places, True)))
        changes.append(torch.autograd.grad(along, list(weights.values())))
    grasp = {name: w * h for (name, w), h in zip(weights.items(), total(changes))}
    adapted.act = functional.relu
    return {"magnitude": {name: w.abs() for name, w in weights.items()}, "snip": snip, "grasp": grasp}


def best(scores):
    every = torch.cat([score.flatten() for score in scores.values()])
    ordered = every.sort(descending=True).values
    left = len(every) - math.ceil(SPARSITY * len(every))
    margin = (ordered[left - 1] - ordered[left]) / ordered.abs().max()
    return {name: (score >= ordered[left - 1]).double() for name, score in scores.items()}, margin


def run(model, inputs):
    model.eval()
    for parameter in model.roberta.parameters():
        parameter.requires_grad_(False)
    adapted = Adapted(model, fresh_adapters(model.config.hidden_size, model.config.num_hidden_layers))
    found = {}
    for scorer, values in scores(adapted, inputs).items():
        masks, margin = best({name: value.detach() for name, value in values.items()})
        print(f"  {scorer}: the scores at the edge are {margin:.1e} of the largest apart")
        found |= {f"scores.{scorer}.{name}": value for name, value in values.items()}
        if scorer == "snip":
            adapted.masks = masks
    head = {f"head.{name}": p for name, p in model.named_parameters() if name.startswith("classifier")}
    trained = [*adapted.tensors.values(), *head.values()]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=EPSILON, weight_decay=DECAY)
    with torch.no_grad():
        found["logits"] = model(**pick(inputs, range(EXAMPLES))).logits
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = adapted.loss(inputs, rows(step))
        loss.backward()
        if step == 0:
            found |= {f"grad.{name}": tensor.grad.clone() for name, tensor in adapted.tensors.items()}
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = linear(RATE, step)
        optimizer.step()
        losses.append(loss.detach())
    found["losses"] = torch.stack(losses)
    found |= {f"final.{name}": tensor for name, tensor in adapted.tensors.items()}
    with torch.no_grad():
        found["logits_final"] = model(**pick(inputs, range(EXAMPLES))).logits
    return found


def main():
    os.chdir(MODELS)
    fresh(FOLDER)
    inputs = data("sparse-adapter-run")
    save(FOLDER / "inputs.safetensors", inputs)
    model = base_model(ROBERTA, attn_implementation="eager").double()
    with in_float64():
        found = run(model, inputs)
    print("  losses", " ".join(f"{x:.4f}" for x in found["losses"].tolist()))
    save(FOLDER / "expected.safetensors", {name: value.float() for name, value in found.items()})


if __name__ == "__main__":
    main()
