"""Writes the reference cases of ProPETL, from section 3 of Zeng, Zhang and Lu (2023), read against `GetSubnet`, `AdapterSubnet`,
`PrefixSubnet` and `LoraSubnet` in propetl-roberta/src/transformers/adapters of github.com/ChaosCodes/ProPETL.

Usage: python scripts/golden/propetl.py   (after models.py)
"""

import math

import torch
from common import REPO, generator, normal
from plain import Untuned, base, write

GOLDEN = REPO / "peft-unified" / "tests" / "golden"
LAYERS, HIDDEN, ROWS, WIDTH, BOTTLENECK, RANK, ALPHA = 3, 24, 4, 11, 5, 3, 4.0
# The share of a matrix that a layer uses, and by how much faster its scores learn.
DENSITY, MASK_RATE = {"adapter": 0.5, "prefix": 0.3, "lora": 0.4}, 3.0


class Subnet(torch.autograd.Function):
    """1 for the largest sizes, 0 for the others, of which there are int((1 - k) n); the gradient passes as it is."""

    @staticmethod
    def forward(ctx, sizes, density):
        dropped = int((1 - density) * sizes.numel())
        mask = torch.ones(sizes.numel(), dtype=sizes.dtype)
        mask[sizes.flatten().argsort()[:dropped]] = 0
        return mask.view_as(sizes)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def mask(scores, density):
    return Subnet.apply(scores.abs(), density)


class Shared(Untuned):
    """A prototype, of which each layer has what its masks let through."""

    kind = ""

    def __init__(self, tensors):
        self.tensors = tensors

    def own(self, name):
        return self.tensors[f"tuner.prototype.{name}"]

    def masked(self, layer, name, value=None):
        value = self.own(name) if value is None else value
        return value * mask(self.tensors[f"tuner.scores.{layer}.{name}"], DENSITY[self.kind])


class Adapter(Shared):
    kind = "adapter"

    def behind_feed_forward(self, layer, output, normalized):
        at = "adapters.encoder.0.feed_forward"
        inner = torch.relu(normalized @ self.masked(layer, f"{at}.down.weight") + self.own(f"{at}.down.bias"))
        return inner @ self.masked(layer, f"{at}.up.weight") + self.own(f"{at}.up.bias")


class Prefix(Shared):
    kind = "prefix"

    def prefix(self, layer):
        own = self.own
        inner = torch.tanh(own("embedding") @ own("projection.inner.weight") + own("projection.inner.bias"))
        shared = inner @ own("projection.outer.weight") + own("projection.outer.bias")
        return self.masked(layer, "embedding", shared).chunk(2, 1)


class Lora(Shared):
    kind = "lora"

    def query_and_value(self, layer, x):
        both = (f"factors.encoder.0.{part}" for part in ["query", "value"])
        return [x @ self.masked(layer, f"{at}.a") @ self.masked(layer, f"{at}.b") * (ALPHA / RANK) for at in both]


SHAPES = {
    Adapter: {
        f"adapters.encoder.0.feed_forward.{name}": shape
        for name, shape in [
            ("down.weight", (HIDDEN, BOTTLENECK)),
            ("down.bias", (BOTTLENECK,)),
            ("up.weight", (BOTTLENECK, HIDDEN)),
            ("up.bias", (HIDDEN,)),
        ]
    },
    Prefix: {
        "embedding": (ROWS, HIDDEN),
        "projection.inner.weight": (HIDDEN, WIDTH),
        "projection.inner.bias": (WIDTH,),
        "projection.outer.weight": (WIDTH, 2 * HIDDEN),
        "projection.outer.bias": (2 * HIDDEN,),
    },
    Lora: {
        f"factors.encoder.0.{part}.{name}": shape
        for part in ["query", "value"]
        for name, shape in [("a", (HIDDEN, RANK)), ("b", (RANK, HIDDEN))]
    },
}
# What is masked; of a prefix what its maps give.
MASKED = {
    Adapter: {name: shape for name, shape in SHAPES[Adapter].items() if name.endswith("weight")},
    Prefix: {"embedding": (ROWS, 2 * HIDDEN)},
    Lora: SHAPES[Lora],
}


def start(method, gen):
    tensors = {f"tuner.prototype.{name}": normal(gen, shape, 0.4) for name, shape in SHAPES[method].items()}
    for layer in range(LAYERS):
        for name, shape in MASKED[method].items():
            tensors[f"tuner.scores.{layer}.{name}"] = normal(gen, shape, 0.15)
    return tensors | base(torch.float32)[1]


def main():
    # Seeds with which no number comes so near to an edge that rounding could move it over.
    for method, seed in [(Adapter, 2), (Prefix, 8), (Lora, 4)]:
        kind, density = method.kind, DENSITY[method.kind]
        begun = start(method, generator(f"propetl-{kind}/{seed}"))
        scores = [name for name in begun if ".scores." in name]

        def watch(tensors):
            masks = {f"masks.{name}": mask(tensors[name], density) for name in scores}
            # How near the last score that is kept comes to the first that is not.
            ordered = {name: tensors[name].detach().abs().flatten().sort().values for name in scores}
            edges = {name: int((1 - density) * len(sizes)) for name, sizes in ordered.items()}
            margins = [ordered[name][edge] - ordered[name][edge - 1] for name, edge in edges.items()]
            return masks | {"margins": torch.stack(margins)}

        rates = lambda name: MASK_RATE if ".scores." in name else 1.0
        exact, single = write(GOLDEN / f"propetl-{kind}", f"propetl-{kind}", begun, method, rates=rates, watch=watch)
        masks = [name for name in exact if name.startswith("masks.")]
        flips = sum(int((exact[name][1:] != exact[name][:-1]).sum()) // 2 for name in masks)
        assert flips > 20 and all(torch.equal(exact[name].float(), single[name]) for name in masks)
        ones = [int(exact[name][0].sum()) for name in masks]
        assert all(n == math.prod(s) - int((1 - density) * math.prod(s)) for n, s in zip(ones, [exact[m][0].shape for m in masks]))
        print(f"  {flips} numbers change places with others; the nearest two at an edge differ by {exact['margins'].min():.1e}")


if __name__ == "__main__":
    main()
