"""Writes the reference cases of Hadamard adapters (Chen et al., 2023): factors and shifts behind self-attentions, around transformers.

Usage: python scripts/golden/hadamard.py   (after models.py, seq_models.py)

From the paper's equation A' = A * w + b; the authors' code is not public.
"""

import torch
from common import REPO, normal
from derived import head, randomize, start, write_case
from torch import nn

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
CASES = {
    "hadamard": ("roberta-classify", "heads"),
    "hadamard-output-bert": ("bert-classify", "output"),
    "hadamard-t5": ("t5", "heads"),
}


def attentions(model):
    """The output projection of each self-attention, by its name, and the normalization that follows it."""
    found = {}
    for name, module in model.named_modules():
        if name.endswith("attention.output"):
            found[f"{name}.dense"] = module.dense, f"{name}.LayerNorm", module.LayerNorm
        if name.endswith("SelfAttention"):
            block = model.get_submodule(name.rsplit(".layer.", 1)[0])
            found[f"{name}.o"] = module.o, name.replace("0.SelfAttention", "1.layer_norm"), block.layer[1].layer_norm
    return found


class Hadamard(nn.Module):
    def __init__(self, model, position):
        super().__init__()
        self.model, self.pairs = model, nn.ModuleDict()
        for path, (projection, _, _) in attentions(model).items():
            width = projection.in_features if position == "heads" else projection.out_features
            pair = nn.ParameterList([torch.ones(width), torch.zeros(width)])
            self.pairs[path.replace(".", "/")] = pair
            if position == "heads":
                projection.register_forward_pre_hook(lambda _, args, pair=pair: args[0] * pair[0] + pair[1])
            else:
                projection.register_forward_hook(lambda _, args, output, pair=pair: output * pair[0] + pair[1])

    def forward(self, inputs):
        output = self.model(**inputs)
        return output.logits, output.loss

    def tensors(self):
        named = {}
        for path, (_, norm, module) in attentions(self.model).items():
            weight, bias = self.pairs[path.replace(".", "/")]
            named |= {f"{path}.hadamard_weight": weight, f"{path}.hadamard_bias": bias}
            named |= {f"{norm}.{leaf}": parameter for leaf, parameter in module.named_parameters()}
        return {f"base_model.model.{name}": tensor for name, tensor in named.items()} | head(self.model)


def make(name):
    base, position = CASES[name]
    gen, inputs, model = start(name, base, 5)
    run = Hadamard(model, position)
    tensors = run.tensors()
    randomize(tensors, gen)
    with torch.no_grad():
        for path, tensor in tensors.items():
            if path.endswith("hadamard_weight"):
                tensor.copy_(normal(gen, tensor.shape, 0.3, mean=1.0))
    return run, inputs, {"peft_type": "HADAMARD_ADAPTER", "position": position}, {}


if __name__ == "__main__":
    for case, (base, _) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
