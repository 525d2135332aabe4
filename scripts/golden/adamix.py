"""Writes a run of AdaMix on sequential adapters, from the paper (Wang et al., 2022, arXiv:2205.12410) in float64.

Checked by reading against github.com/microsoft/AdaMix, src/transformers/models/expert_soup.py and roberta/modeling_roberta.py (commit
d361e9d): adapters behind the last map of the feed-forward network, one expert of each map drawn for each of two forwards, the loss of the
first with half the sum of two divergences whose targets are detached, predictions by the mean. Otherwise than there the random numbers
are the library's (`noise.py`), routes are drawn once a step, and experts do not start as copies of one another.

Usage: python scripts/golden/adamix.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, generator, in_float64, normal, save
from methods import ROBERTA, base_model
from noise import EXAMPLES, STEPS, Random, data, linear, pick, rows
from torch.nn import functional

FOLDER = REPO / "peft-unified" / "tests" / "golden" / "adamix-run"
WIDTH, EXPERTS, RATE, DECAY, CLIP, EPSILON, SEED, WEIGHT = 5, 3, 1e-2, 0.1, 1.0, 1e-3, 7, 0.7


def start(hidden, layers):
    """By the names of the library's records: the first expert of each map, then the others, whose biases have one row."""
    gen = generator("adamix")
    shapes = {"down.weight": (hidden, WIDTH), "down.bias": (WIDTH,), "up.weight": (WIDTH, hidden), "up.bias": (hidden,)}
    tensors = {}
    for layer in range(layers):
        for name, shape in shapes.items():
            own = f"adapters.encoder.{layer}.feed_forward.{name}"
            tensors[f"first.{own}"] = normal(gen, shape, 0.3)
            for expert in range(1, EXPERTS):
                tensors[f"others.{expert}.{own}"] = normal(gen, shape if len(shape) == 2 else (1, *shape), 0.3)
    return {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}


class Adapted:
    def __init__(self, model, tensors):
        self.model, self.tensors, self.route = model, tensors, None
        for layer, block in enumerate(model.roberta.encoder.layer):
            block.output.dense.register_forward_hook(self.hook(f"adapters.encoder.{layer}.feed_forward"))

    def of(self, map, leaf):
        name = f"{map}.{leaf}"
        all = [self.tensors[f"first.{name}"]]
        all += [self.tensors[f"others.{expert}.{name}"].reshape(all[0].shape) for expert in range(1, EXPERTS)]
        return sum(all) / EXPERTS if self.route is None else all[self.route[map]]

    def hook(self, site):
        def after(_, __, h):
            down, up = f"{site}.down", f"{site}.up"
            inner = functional.gelu(h @ self.of(down, "weight") + self.of(down, "bias"))
            return h + inner @ self.of(up, "weight") + self.of(up, "bias")

        return after

    def logits(self, inputs, places, route):
        self.route = route
        return self.model(**{k: v for k, v in pick(inputs, places).items() if k != "labels"}).logits


def routes(adapted, step):
    """Two for each map, in the order of the maps' names."""
    random = Random(SEED, f"sample of step {step}")
    maps = sorted({name.removeprefix("first.").rsplit(".", 1)[0] for name in adapted.tensors if name.startswith("first.")})
    drawn = {map: [(random.bits() * EXPERTS) >> 64 for _ in range(2)] for map in maps}
    return [{map: both[i] for map, both in drawn.items()} for i in range(2)]


def divergence(p, q):
    one = lambda x, fixed: functional.kl_div(x.log_softmax(-1), fixed.detach().softmax(-1), reduction="batchmean")
    return (one(p, q) + one(q, p)) / 2


def run(model, inputs):
    model.eval()
    for parameter in model.roberta.parameters():
        parameter.requires_grad_(False)
    tensors = start(model.config.hidden_size, model.config.num_hidden_layers)
    found = {f"start.{name}": tensor.detach().clone() for name, tensor in tensors.items()}
    adapted = Adapted(model, tensors)
    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    trained = [*tensors.values(), *head]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=EPSILON, weight_decay=DECAY)
    with torch.no_grad():
        found["logits"] = adapted.logits(inputs, range(EXAMPLES), None)
    losses, apart = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        places, both = rows(step), routes(adapted, step)
        p, q = (adapted.logits(inputs, places, route) for route in both)
        apart.append(divergence(p, q))
        loss = functional.cross_entropy(p, inputs["labels"][places]) + WEIGHT * apart[-1]
        loss.backward()
        if step == 0:
            found |= {f"grad.{name}": t.grad.clone() for name, t in tensors.items() if t.grad is not None}
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = linear(RATE, step)
        optimizer.step()
        losses.append(loss.detach())
    print("  divergences", " ".join(f"{x.item():.4f}" for x in apart))
    found["losses"] = torch.stack(losses)
    found |= {f"final.{name}": tensor for name, tensor in tensors.items()}
    with torch.no_grad():
        found["logits_final"] = adapted.logits(inputs, range(EXAMPLES), None)
    return found


def main():
    os.chdir(MODELS)
    fresh(FOLDER)
    inputs = data("adamix-run")
    save(FOLDER / "inputs.safetensors", inputs)
    model = base_model(ROBERTA, attn_implementation="eager").double()
    with in_float64():
        found = run(model, inputs)
    print("  losses", " ".join(f"{x:.4f}" for x in found["losses"].tolist()))
    save(FOLDER / "expected.safetensors", {name: value.float() for name, value in found.items()})


if __name__ == "__main__":
    main()
