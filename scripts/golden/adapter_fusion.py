"""Writes the reference cases of AdapterFusion (Pfeiffer et al., 2021) with AdapterHub's package.

Usage: python scripts/golden/adapter_fusion.py   (after models.py, seq_models.py; in the environment of adapterhub.py, with peft)

The steps are those of the task's loss alone; the penalty is written beside, as it is at the start.
"""

import adapters
import torch
from adapters import SeqBnConfig
from adapters.composition import Fuse
from common import REPO, normal, save
from derived import head, randomize, start, write_case
from torch import nn

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
NAMES, WIDTH = ["a", "b", "c"], 5
CASES = {"adapter-fusion": "roberta-classify", "adapter-fusion-bert": "bert-classify"}
SEEDS = {"adapter-fusion": 2, "adapter-fusion-bert": 1}


class Fusion(nn.Module):
    # All keys of a sub-layer get the same from it.
    noisy = ("fusion_key.bias",)

    def __init__(self, model):
        super().__init__()
        self.model = model
        adapters.init(model)
        for name in NAMES:
            model.add_adapter(name, config=SeqBnConfig(reduction_factor=24 / WIDTH))
        model.add_adapter_fusion(Fuse(*NAMES), set_active=True)

    def forward(self, inputs):
        output = self.model(**inputs)
        return output.logits, output.loss

    def named(self, part, rename):
        """The tensors of a part of the package's, by our names."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if part in name:
                path, leaf = name.split(f".{part}")
                found[f"base_model.model.{path}.{rename(leaf)}"] = parameter
        return found

    def tensors(self):
        fused = self.named("adapter_fusion_layer.", lambda leaf: "adapter_fusion_" + leaf.split(".", 1)[1])
        return fused | head(self.model)

    def adapters(self):
        rename = lambda leaf: f"adapter_{NAMES.index(leaf[0])}_" + leaf[10:].replace("down.0", "down")
        return self.named("adapters.", rename)


def make(name):
    gen, inputs, model = start(name, CASES[name], SEEDS[name])
    run = Fusion(model).eval()
    randomize(run.adapters(), gen)
    randomize(run.tensors(), gen)
    with torch.no_grad():
        for path, parameter in run.tensors().items():
            if "fusion_value" in path:
                parameter.copy_(torch.eye(len(parameter)) + normal(gen, parameter.shape, 0.1))
    penalty = model.get_fusion_regularization_loss().detach()
    settings = {"peft_type": "ADAPTER_FUSION", "num_adapters": len(NAMES)}
    adapter = {"bottleneck": WIDTH, "placement": "pfeiffer", "activation": "relu", "train_layernorm": False}
    return run, inputs, settings | {"adapter": adapter}, {"penalty": penalty.reshape(1)}


if __name__ == "__main__":
    for case, base in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
        # The adapters are in the file too, though nothing trains them.
        run = make(case)[0]
        save(ADDITIVE / case / "adapter" / "adapter_model.safetensors", run.tensors() | run.adapters())
