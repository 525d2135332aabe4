"""The library's random numbers, functions of a seed and a name (`peft-core/src/random.rs`), and what runs on RoBERTa share."""

import math

import torch
from common import batch, generator

MASK = (1 << 64) - 1
EXAMPLES, SIZE, STEPS = 20, 8, 10
KEY = "base_model.model."


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


class Random:
    """A stream of numbers: SplitMix64 from a key, which is a hash (FNV-1a) of the name under the seed."""

    def __init__(self, seed, name):
        key = 0xCBF29CE484222325
        for byte in name.encode():
            key = ((key ^ byte) * 0x100000001B3) & MASK
        self.key, self.counter = mix(seed ^ mix(key)), 0

    def bits(self):
        self.counter += 1
        return mix((self.key + self.counter * 0x9E3779B97F4A7C15) & MASK)

    def unit(self):
        return (self.bits() >> 11) / 2.0**53

    def normal(self):
        radius = math.sqrt(-2.0 * math.log(1.0 - self.unit()))
        return radius * math.cos(2.0 * math.pi * self.unit())

    def permutation(self, n):
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = (self.bits() * (i + 1)) >> 64
            order[i], order[j] = order[j], order[i]
        return order

    def uniform(self, rows, columns=None):
        """As the library holds them: rounded to float32."""
        count = rows * (columns or 1)
        numbers = torch.tensor([self.unit() for _ in range(count)], dtype=torch.float64).float().double()
        return numbers if columns is None else numbers.view(rows, columns)


PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "output",
    "attention.output.LayerNorm": "norm_attention",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_feed_forward",
}
EMBEDDINGS = {
    "word_embeddings": "words",
    "position_embeddings": "positions",
    "token_type_embeddings": "types",
    "LayerNorm": "norm_embedding",
}


def own_name(name):
    """What the library calls a tensor of a RoBERTa, and whether it holds it transposed."""
    module, leaf = name.removeprefix("roberta.").rsplit(".", 1)
    if module.startswith("embeddings."):
        site = f"encoder.0.{EMBEDDINGS[module.removeprefix('embeddings.')]}"
    else:
        layer, module = module.removeprefix("encoder.layer.").split(".", 1)
        site = f"encoder.{layer}.{PARTS[module]}"
    norm = "LayerNorm" in module
    kind = "biases" if leaf == "bias" else "gains" if norm else "weights"
    return f"{kind}.{site}", kind == "weights" and not module.startswith("embeddings.")


def uniform_like(tensor, seed, prefix, name):
    """Uniform numbers for a tensor, drawn under the library's name and in the order of its memory."""
    own, transposed = own_name(name)
    random = Random(seed, prefix + own)
    if tensor.dim() == 1:
        return random.uniform(tensor.shape[0])
    rows, columns = reversed(tensor.shape) if transposed else tensor.shape
    numbers = random.uniform(rows, columns)
    return numbers.T if transposed else numbers


def data(name):
    """Examples of different lengths; a run takes them in their order, over and over."""
    gen = generator(name)
    inputs = batch(gen, "roberta", [3 + 5 * i % 9 for i in range(EXAMPLES)])
    return inputs | {"labels": torch.randint(0, 3, (EXAMPLES,), generator=gen)}


def rows(step):
    return [(step * SIZE + i) % EXAMPLES for i in range(SIZE)]


def pick(inputs, places):
    return {key: value[places] for key, value in inputs.items()}


def linear(rate, step):
    """The learning rate of a step, counted from 0: falling to 0 without a warm-up."""
    return rate * (STEPS - step) / STEPS
