"""Writes a step of the search of S3Delta-M, from the equations of Hu et al. (2022, arXiv:2206.07382, section 3) in float64, read against
NAS_global/delta_layers.py and architect.py of github.com/thunlp/S3Delta (commit 3e046d4). The gradient of the structure behind a step of the
weights is differentiated exactly, where the library and the code take finite differences. The step is the plain one of the paper, the
code's is AdamW's. Halves and draws are the library's (`noise.py`).

Usage: python scripts/golden/s3delta.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, generator, in_float64, normal, save
from methods import ROBERTA, base_model
from noise import EXAMPLES, PARTS, Random, data, pick
from scipy.optimize import brentq
from torch.nn import functional

FOLDER = REPO / "peft-hybrid" / "tests" / "golden" / "s3delta-step"
SHARE, WIDTH, XI, SEED = 0.02, 3, 0.5, 7


def space(model):
    """Parts in the library's order: site, kind, and the shapes of their tensors."""
    d, inner, layers = model.config.hidden_size, model.config.intermediate_size, model.config.num_hidden_layers
    parts = []
    for layer in range(layers):
        for part in PARTS.values():
            site = f"encoder.{layer}.{part}"
            if part.startswith("norm"):
                parts += [(site, "gain", {f"gains.{site}": (d,)}), (site, "bias", {f"biases.{site}": (d,)})]
                continue
            into, out = {"up": (d, inner), "down": (inner, d)}.get(part, (d, d))
            lora = {f"lora.factors.{site}.a": (into, 1), f"lora.factors.{site}.b": (1, out)}
            parts += [(site, "lora", lora), (site, "bias", {f"biases.{site}": (out,)})]
    for part in ["self_attention", "feed_forward"]:
        for layer in range(layers):
            site = f"encoder.{layer}.{part}"
            maps = {"down": (d, WIDTH), "up": (WIDTH, d)}
            shapes = {}
            for name, (into, out) in maps.items():
                own = f"adapters.{site}.{name}"
                shapes |= {f"{own}.left": (into, 1), f"{own}.right": (1, out), f"{own}.bias": (out,)}
            parts.append((site, "adapter", shapes))
    return parts


class Search:
    def __init__(self, model, parts, budget):
        self.model, self.parts, self.budget = model, parts, budget
        self.counts = torch.tensor([sum(torch.Size(s).numel() for s in shapes.values()) for _, _, shapes in parts]).double()
        self.place = {(site, kind): i for i, (site, kind, _) in enumerate(parts)}
        for layer, block in enumerate(model.roberta.encoder.layer):
            for module, part in PARTS.items():
                site = f"encoder.{layer}.{part}"
                of = block.get_submodule(module)
                of.register_forward_hook(self.norm(site) if part.startswith("norm") else self.linear(site))
            for module, part in [("attention.output.dense", "self_attention"), ("output.dense", "feed_forward")]:
                block.get_submodule(module).register_forward_hook(self.adapter(f"encoder.{layer}.{part}"))

    def linear(self, site):
        def after(_, inputs, y):
            a, b = (self.w[f"lora.factors.{site}.{factor}"] for factor in "ab")
            y = y + self.z[self.place[site, "lora"]] * (inputs[0] @ a @ b)
            return y + self.z[self.place[site, "bias"]] * self.w[f"biases.{site}"]

        return after

    def norm(self, site):
        def after(module, _, y):
            standard = (y - module.bias) / module.weight
            y = y + self.z[self.place[site, "gain"]] * self.w[f"gains.{site}"] * standard
            return y + self.z[self.place[site, "bias"]] * self.w[f"biases.{site}"]

        return after

    def adapter(self, site):
        def thin(x, map):
            own = lambda leaf: self.w[f"adapters.{site}.{map}.{leaf}"]
            return x @ own("left") @ own("right") + own("bias")

        def after(_, __, y):
            inner = functional.gelu(thin(y, "down"), approximate="tanh")
            return y + self.z[self.place[site, "adapter"]] * thin(inner, "up")

        return after

    def likely(self, alpha):
        """With the shift as a constant, and the sum held: what one part gains the others lose."""
        expected = lambda zeta: (torch.sigmoid(alpha.detach() - zeta) * self.counts).sum().item() - self.budget
        zeta = brentq(expected, -60, 60, xtol=1e-14)
        p = torch.sigmoid(alpha - zeta)
        return p / p.sum() * p.sum().detach()

    def loss(self, w, alpha, drawn, inputs, rows):
        p = self.likely(alpha)
        self.w, self.z = w, torch.sigmoid(torch.log(drawn / (1 - drawn)) + torch.log(p / (1 - p)))
        batch = {k: v for k, v in pick(inputs, rows).items() if k != "labels"}
        logits = self.model(**batch).logits
        return functional.cross_entropy(logits, inputs["labels"][rows]), logits


def in_second(inputs, row):
    ids, real = inputs["input_ids"][row].tolist(), inputs["attention_mask"][row].tolist()
    text = [i for i, kept in zip(ids, real) if kept]
    return Random(0, f"half of {text}").bits() & 1 == 1


def run(model, inputs):
    model.eval()
    for parameter in model.roberta.parameters():
        parameter.requires_grad_(False)
    parts = space(model)
    search = Search(model, parts, int(SHARE * sum(p.numel() for p in model.roberta.parameters())))
    gen = generator("s3delta-step")
    w = {name: normal(gen, shape, 0.3).double().requires_grad_() for *_, shapes in parts for name, shape in shapes.items()}
    alpha = normal(gen, (len(parts),), 1.0).double().requires_grad_()
    random = Random(SEED, "sample of step 0")
    drawn = torch.tensor([random.unit() for _ in parts], dtype=torch.float64)
    found = {f"start.{name}": tensor.detach().clone() for name, tensor in (w | {"alpha": alpha}).items()}

    p = search.likely(alpha).detach()
    left, chosen = search.budget, torch.zeros(len(parts))
    for i in sorted(range(len(parts)), key=lambda i: -p[i].item()):
        if search.counts[i] <= left:
            left, chosen[i] = left - search.counts[i], 1
    found |= {"probabilities": p, "chosen": chosen}

    second = [in_second(inputs, row) for row in range(EXAMPLES)]
    halves = [[row for row in range(EXAMPLES) if second[row] == half] for half in (False, True)]
    print("  halves", [len(half) for half in halves], "chosen", int(chosen.sum()), "of", len(parts), "budget", search.budget)
    found["logits"] = search.loss(w, alpha, drawn, inputs, list(range(EXAMPLES)))[1].detach()
    loss, _ = search.loss(w, alpha.detach(), drawn, inputs, halves[0])
    head = {name: p for name, p in model.named_parameters() if name.startswith("classifier")}
    own = torch.autograd.grad(loss, [*w.values(), *head.values()])
    found["loss"] = loss.detach()[None]
    found |= {f"grad.tuner.{name}": grad for name, grad in zip(w, own)}
    names = {"classifier.dense": "dense", "classifier.out_proj": "out"}
    for name, grad in zip(head, own[len(w) :]):
        module, leaf = name.rsplit(".", 1)
        found[f"grad.head.Classifier.{names[module]}.{leaf}"] = grad.T if grad.ndim == 2 else grad

    first, _ = search.loss(w, alpha, drawn, inputs, halves[0])
    step = torch.autograd.grad(first, list(w.values()), create_graph=True)
    stepped = {name: tensor - XI * slope for (name, tensor), slope in zip(w.items(), step)}
    judged, _ = search.loss(stepped, alpha, drawn, inputs, halves[1])
    (found["grad.tuner.alpha"],) = torch.autograd.grad(judged, alpha)
    direct = {name: tensor.detach() for name, tensor in stepped.items()}
    (short,) = torch.autograd.grad(search.loss(direct, alpha, drawn, inputs, halves[1])[0], alpha)
    print("  gradient of alpha", found["grad.tuner.alpha"].abs().max().item(), "of which past the step", (found["grad.tuner.alpha"] - short).abs().max().item())
    return found


def main():
    os.chdir(MODELS)
    fresh(FOLDER)
    inputs = data("s3delta-step")
    save(FOLDER / "inputs.safetensors", inputs)
    model = base_model(ROBERTA, attn_implementation="eager").double()
    with in_float64():
        found = run(model, inputs)
    save(FOLDER / "expected.safetensors", {name: value.detach().float().contiguous() for name, value in found.items()})


if __name__ == "__main__":
    main()
