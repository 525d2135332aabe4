"""Writes the reference cases of AdapterDrop (Rueckle et al., 2021): Pfeiffer's adapters in upper layers, around transformers.

Usage: python scripts/golden/adapter_drop.py   (after models.py, seq_models.py)

From section 3 of the paper and Pfeiffer's adapter as AdapterHub's `SeqBnConfig` describes it; checked by reading against
adapter-hub/adapters, src/adapters/methods/modeling.py (`Adapter.pre_forward`, `forward`, `post_forward`).
"""

import torch
from common import REPO
from derived import head, randomize, start, write_case
from torch import nn

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
WIDTH = 5
# How many of the lowest layers go without adapters in each step of the robust run.
DROPS = [0, 2, 1, 1, 0, 2, 0, 1, 2, 1]
CASES = {
    "adapter-drop": ("roberta-classify", 1, False),
    "adapter-drop-t5": ("t5", 1, False),
    "adapter-drop-robust": ("roberta-classify", 1, True),
}
SEEDS = {"adapter-drop": 2, "adapter-drop-t5": 0, "adapter-drop-robust": 1}


class AdapterDrop(nn.Module):
    def __init__(self, model, drop, robust):
        super().__init__()
        self.model, self.drop, self.robust = model, drop, robust
        self.adapters, self.skipped = nn.ModuleDict(), drop
        if hasattr(model, "roberta"):
            stacks = {"": model.roberta.encoder.layer}
        else:
            stacks = {"encoder": model.encoder.block, "decoder": model.decoder.block}
        for stack, layers in stacks.items():
            for layer, module in enumerate(layers):
                if robust or layer >= drop:
                    self.adapters[f"{stack}{layer}"] = nn.Sequential(
                        nn.Linear(model.config.hidden_size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, model.config.hidden_size)
                    )
                    end = module.layer[-1] if stack else module.output
                    end.forward = self.pre_norm(end, stack, layer) if stack else self.post_norm(end, layer)

    def adapted(self, u, read, name, layer):
        return u if layer < self.skipped else u + self.adapters[name](read)

    def post_norm(self, output, layer):
        def forward(inner, x):
            u = output.dense(inner)
            return output.LayerNorm(self.adapted(u, output.LayerNorm(u + x), f"{layer}", layer) + x)

        return forward

    def pre_norm(self, output, stack, layer):
        # No normalization follows through which the sum could be read.
        def forward(x):
            u = output.DenseReluDense(output.layer_norm(x))
            return x + self.adapted(u, u + x, f"{stack}{layer}", layer)

        return forward

    def before(self, step):
        if self.robust:
            self.skipped = self.drop if step is None else DROPS[step]

    def watched(self):
        return torch.tensor(float(self.skipped))

    def forward(self, inputs):
        output = self.model(**inputs)
        return output.logits, output.loss

    def tensors(self):
        named = {}
        for name, parameter in self.adapters.named_parameters():
            place, map_, leaf = name.split(".")
            stack, layer = place.rstrip("0123456789"), place.lstrip("encodr")
            path = f"{stack}.block.{layer}.layer.{'1' if stack == 'encoder' else '2'}.DenseReluDense.wo"
            path = path if stack else f"roberta.encoder.layer.{layer}.output"
            named[f"base_model.model.{path}.adapter_{'down' if map_ == '0' else 'up'}.{leaf}"] = parameter
        return named | head(self.model)


def make(name):
    base, drop, robust = CASES[name]
    gen, inputs, model = start(name, base, SEEDS[name])
    run = AdapterDrop(model, drop, robust)
    randomize(run.tensors(), gen)
    return run, inputs, {"peft_type": "ADAPTER_DROP", "drop": drop, "robust": robust, "bottleneck": WIDTH}, {}


if __name__ == "__main__":
    for case, (base, _, _) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
