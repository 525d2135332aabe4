"""Writes the reference case of MAM adapters, from equations 5 to 8 and section 4.6 of He et al. (2021), read against `Prefix` and
`Adapter_Layer` in petl/petl_factory.py and the RoBERTa of github.com/jxhe/unify-parameter-efficient-tuning.

Usage: python scripts/golden/mam.py   (after models.py)
"""

import torch
from common import REPO, generator, normal
from plain import Untuned, base, write

FOLDER = REPO / "peft-hybrid" / "tests" / "golden" / "mam"
LAYERS, HIDDEN, ROWS, WIDTH, BOTTLENECK, SCALE = 3, 24, 4, 11, 5, 2.0


class Mam(Untuned):
    def __init__(self, tensors):
        own = lambda name: tensors[f"tuner.0.{name}"]
        # One row: key and value of layer 0, of layer 1, ..
        inner = torch.tanh(own("embedding") @ own("projection.inner.weight") + own("projection.inner.bias"))
        rows = inner @ own("projection.outer.weight") + own("projection.outer.bias")
        self.rows = rows.unflatten(-1, (LAYERS, 2, HIDDEN))
        self.adapter = lambda layer, name: tensors[f"tuner.1.adapters.encoder.{layer}.feed_forward.{name}"]

    def prefix(self, layer):
        return self.rows[:, layer].unbind(1)

    def beside_feed_forward(self, layer, x):
        of = lambda name: self.adapter(layer, name)
        inner = torch.relu(x @ of("down.weight") + of("down.bias"))
        return SCALE * (inner @ of("up.weight") + of("up.bias"))


def start():
    gen = generator("mam/0")
    shapes = {
        "0.embedding": (ROWS, HIDDEN),
        "0.projection.inner.weight": (HIDDEN, WIDTH),
        "0.projection.inner.bias": (WIDTH,),
        "0.projection.outer.weight": (WIDTH, LAYERS * 2 * HIDDEN),
        "0.projection.outer.bias": (LAYERS * 2 * HIDDEN,),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"1.adapters.encoder.{layer}.feed_forward.{name}": shape
            for name, shape in [
                ("down.weight", (HIDDEN, BOTTLENECK)),
                ("down.bias", (BOTTLENECK,)),
                ("up.weight", (BOTTLENECK, HIDDEN)),
                ("up.bias", (HIDDEN,)),
            ]
        }
    # Random throughout, also what a run starts at 0: nothing may hide behind a zero.
    return {f"tuner.{name}": normal(gen, shape, 0.4) for name, shape in shapes.items()} | base(torch.float32)[1]


if __name__ == "__main__":
    write(FOLDER, "mam", start(), Mam)
