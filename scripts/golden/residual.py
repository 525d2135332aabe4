"""Writes the reference cases of residual adapters (Lin et al., 2020) with AdapterHub's package; task embeddings are put beside it.

Usage: python scripts/golden/residual.py   (after models.py, seq_models.py; in the environment of adapterhub.py, with peft)

The adapters are the package's with a normalization of their own inside (`ln_before`), on what a layer gives: behind its last
normalization (`original_ln_before`), which does not come once more (`original_ln_after`), their residual being that
(`residual_before_ln`). Checked by reading against zlinao/VGLM, pytorch_transformers/modeling_vlm.py (`Block`, `Adapter`).
"""

import adapters
import torch
from adapters import BnConfig
from common import REPO
from derived import head, randomize, start, write_case
from torch import nn

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
NAME, WIDTH = "residual", 6
CASES = {
    "residual": ("roberta-classify", True),
    "residual-bert": ("bert-classify", False),
    "residual-t5": ("t5", True),
}
SEEDS = {"residual": 1, "residual-bert": 1, "residual-t5": 5}
CONFIG = BnConfig(
    mh_adapter=False,
    output_adapter=True,
    non_linearity="relu",
    reduction_factor=24 / WIDTH,
    ln_before=True,
    original_ln_before=True,
    original_ln_after=False,
    residual_before_ln=False,
)


class Residual(nn.Module):
    def __init__(self, model, task_embedding):
        super().__init__()
        self.model, self.tasks = model, nn.ParameterDict()
        adapters.init(model)
        model.add_adapter(NAME, config=CONFIG, set_active=True)
        for name, module in model.named_modules():
            if name.endswith("adapter_norm_before"):
                # The reference's is the model's.
                eps = "layer_norm_epsilon" if hasattr(model.config, "layer_norm_epsilon") else "layer_norm_eps"
                module.eps = getattr(model.config, eps)
        if task_embedding and hasattr(model, "shared"):
            for stack in ["encoder", "decoder"]:
                task = self.tasks[stack] = nn.Parameter(torch.zeros(model.config.hidden_size))
                first = getattr(model, stack).block[0]
                first.register_forward_pre_hook(lambda _, args, task=task: (args[0] + task, *args[1:]))
        elif task_embedding:
            task = self.tasks["encoder"] = nn.Parameter(torch.zeros(model.config.hidden_size))
            model.get_input_embeddings().register_forward_hook(lambda _, args, words: words + task)

    def forward(self, inputs):
        output = self.model(**inputs)
        return output.logits, output.loss

    def tensors(self):
        named = {f"{stack}.task_embedding": task for stack, task in self.tasks.items()}
        for name, parameter in self.model.named_parameters():
            if f".adapters.{NAME}." in name:
                path, leaf = name.split(f".adapters.{NAME}.")
                path = path + ".DenseReluDense.wo" if "block" in path else path
                named[f"{path}.{leaf.replace('adapter_down.1', 'adapter_down')}"] = parameter
        return {f"base_model.model.{name}": tensor for name, tensor in named.items()} | head(self.model)


def make(name):
    base, task_embedding = CASES[name]
    gen, inputs, model = start(name, base, SEEDS[name])
    run = Residual(model, task_embedding).eval()
    randomize(run.tensors(), gen)
    return run, inputs, {"peft_type": "RESIDUAL_ADAPTER", "bottleneck": WIDTH, "task_embedding": task_embedding}, {}


if __name__ == "__main__":
    for case, (base, _) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
