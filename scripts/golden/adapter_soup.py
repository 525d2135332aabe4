"""Writes the reference cases of AdapterSoup's mean (Chronopoulou et al., 2023) with AdapterHub's package.

Usage: python scripts/golden/adapter_soup.py   (after models.py, seq_models.py; in the environment of adapterhub.py, with peft)

Three adapters, each a directory of ours, and the package's average of them with its logits, gradients and steps.
"""

import adapters
from adapters import DoubleSeqBnConfig, SeqBnConfig
from common import REPO, fresh, save, write_json
from derived import head, randomize, start, write_case
from torch import nn

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
NAMES, WIDTH = ["a", "b", "c"], 5
CASES = {"adapter-soup": ("roberta-classify", SeqBnConfig), "adapter-soup-bert": ("bert-classify", DoubleSeqBnConfig)}
SEEDS = {"adapter-soup": 1, "adapter-soup-bert": 1}


class Soup(nn.Module):
    def __init__(self, model, config):
        super().__init__()
        self.model = model
        adapters.init(model)
        for name in NAMES:
            model.add_adapter(name, config=config(reduction_factor=24 / WIDTH))

    def average(self):
        self.model.average_adapter("soup", NAMES, set_active=True)
        return self.eval()

    def forward(self, inputs):
        output = self.model(**inputs)
        return output.logits, output.loss

    def adapter(self, name):
        """The tensors of an adapter of the package's, by our names."""
        found = {}
        for path, parameter in self.model.named_parameters():
            if f"adapters.{name}." in path:
                module, leaf = path.split(f"adapters.{name}.")
                found[f"base_model.model.{module}" + leaf.replace("down.0", "down")] = parameter
        return found

    def tensors(self):
        return self.adapter("soup") | head(self.model)


def settings(config):
    double = config is DoubleSeqBnConfig
    placement, activation = ("houlsby", "swish") if double else ("pfeiffer", "relu")
    return {"bottleneck": WIDTH, "placement": placement, "activation": activation, "train_layernorm": False}


def make(name):
    base, config = CASES[name]
    gen, inputs, model = start(name, base, SEEDS[name])
    run = Soup(model, config)
    for one in NAMES:
        randomize(run.adapter(one), gen)
    randomize(head(model), gen)
    return run.average(), inputs, {"peft_type": "ADAPTER_SOUP", "adapter": settings(config)}, {}


if __name__ == "__main__":
    for case, (base, config) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
        run = make(case)[0]
        for one in NAMES:
            folder = fresh(ADDITIVE / case / one)
            save(folder / "adapter_model.safetensors", run.adapter(one) | head(run.model))
            fields = {"base_model_name_or_path": base, "task_type": "SEQ_CLS", "peft_type": "SEQUENTIAL_ADAPTER"}
            write_json(folder / "adapter_config.json", fields | settings(config))
