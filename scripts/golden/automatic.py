"""Writes the reference cases of S4 and AutoPEFT: parts in some layers only, from the equations of their papers (Chen et al., 2023, section 4;
Zhou et al., 2023, section 3.1) on a RoBERTa of three layers.

Usage: python scripts/golden/automatic.py   (after models.py)
"""

import torch
from common import REPO, generator, normal
from noise import PARTS
from plain import Untuned, base, write

GOLDEN = REPO / "peft-hybrid" / "tests" / "golden"
HIDDEN, INNER, ROWS, RANK = 24, 40, 4, 3


def bottleneck(tensors, of, x):
    inner = torch.relu(x @ tensors[f"{of}.down.weight"] + tensors[f"{of}.down.bias"])
    return inner @ tensors[f"{of}.up.weight"] + tensors[f"{of}.up.bias"]


def bottleneck_shapes(of, width):
    maps = {"down.weight": (HIDDEN, width), "down.bias": (width,), "up.weight": (width, HIDDEN), "up.bias": (HIDDEN,)}
    return {f"{of}.{name}": shape for name, shape in maps.items()}


def pair(rows):
    """The keys and values of one layer."""
    return rows.unflatten(-1, (2, HIDDEN)).unbind(1)


class S4(Untuned):
    """Layer 0: adapter, LoRA. Layer 1: adapter, prefix. Layer 2: prefix, biases, LoRA. In this order they are the parts."""

    ADAPTERS, LORAS, PREFIXES, BIASES = {0: 0, 1: 2}, {0: 1, 2: 6}, {1: 3, 2: 4}, {2: 5}

    def __init__(self, tensors):
        self.tensors = tensors

    def at(self, parts, layer, field, part):
        return f"tuner.methods.parts.{parts[layer]}.{field}.encoder.{layer}.{part}"

    def tensor(self, name, own):
        _, _, layer, *module, leaf = name.split(".")
        if leaf != "bias" or int(layer) not in self.BIASES:
            return own
        return self.tensors[self.at(self.BIASES, int(layer), "biases", PARTS[".".join(module)])]

    def query_and_value(self, layer, x):
        if layer not in self.LORAS:
            return 0, 0
        factor = lambda part, leaf: self.tensors[self.at(self.LORAS, layer, "factors", f"{part}.{leaf}")]
        # Alpha is the rank.
        return tuple(x @ factor(part, "a") @ factor(part, "b") for part in ["query", "value"])

    def prefix(self, layer):
        if layer not in self.PREFIXES:
            return None
        return pair(self.tensors[f"tuner.methods.parts.{self.PREFIXES[layer]}.embedding"])

    def behind_feed_forward(self, layer, output, normalized):
        if layer not in self.ADAPTERS:
            return 0
        return bottleneck(self.tensors, self.at(self.ADAPTERS, layer, "adapters", "feed_forward"), normalized)

    @classmethod
    def shapes(cls):
        self, shapes = cls({}), {}
        for layer in cls.ADAPTERS:
            shapes |= bottleneck_shapes(self.at(cls.ADAPTERS, layer, "adapters", "feed_forward"), 5)
        for layer in cls.LORAS:
            for part in ["query", "value"]:
                shapes[self.at(cls.LORAS, layer, "factors", f"{part}.a")] = (HIDDEN, RANK)
                shapes[self.at(cls.LORAS, layer, "factors", f"{part}.b")] = (RANK, HIDDEN)
        shapes |= {f"tuner.methods.parts.{part}.embedding": (ROWS, 2 * HIDDEN) for part in cls.PREFIXES.values()}
        for layer in cls.BIASES:
            for part in PARTS.values():
                shapes[self.at(cls.BIASES, layer, "biases", part)] = (INNER if part == "up" else HIDDEN,)
        return shapes


class AutoPeft(Untuned):
    """All parts in layers 0 and 2."""

    LAYERS, SCALE = [0, 2], 2.0

    def __init__(self, tensors):
        self.tensors = tensors

    def prefix(self, layer):
        if layer not in self.LAYERS:
            return None
        return pair(self.tensors["tuner.parts.2.embedding"].unflatten(-1, (2, -1))[:, self.LAYERS.index(layer)])

    def beside_feed_forward(self, layer, x):
        own = f"tuner.parts.1.adapters.encoder.{layer}.feed_forward"
        return self.SCALE * bottleneck(self.tensors, own, x) if layer in self.LAYERS else 0

    def behind_feed_forward(self, layer, output, normalized):
        own = f"tuner.parts.0.adapters.encoder.{layer}.feed_forward"
        # The output is that of the feed-forward network with the parallel adapter.
        return bottleneck(self.tensors, own, normalized) if layer in self.LAYERS else 0

    @classmethod
    def shapes(cls):
        shapes = {"tuner.parts.2.embedding": (ROWS, 2 * 2 * HIDDEN)}
        for layer in cls.LAYERS:
            for part, width in [(0, 3), (1, 5)]:
                shapes |= bottleneck_shapes(f"tuner.parts.{part}.adapters.encoder.{layer}.feed_forward", width)
        return shapes


if __name__ == "__main__":
    for name, method in [("s4", S4), ("autopeft", AutoPeft)]:
        gen = generator(name)
        # Random throughout, also what a run starts at 0: nothing may hide behind a zero.
        start = {tensor: normal(gen, shape, 0.4) for tensor, shape in method.shapes().items()}
        write(GOLDEN / name, name, start | base(torch.float32)[1], method)
