"""Writes the reference cases of MerA (He et al., 2023): three adapters, and what each way of merging makes of them.

Usage: python scripts/golden/mera.py   (after models.py, seq_models.py; in the environment of adapterhub.py, with peft and scipy)

From the paper's equations and the recipe of sidak/otfusion, in float64: activations are those of AdapterHub's modules, the exact
transport is scipy's assignment, Sinkhorn's are plain iterations. The adapter merged by activations is then trained.
"""

import adapters
import numpy as np
import torch
from adapters import DoubleSeqBnConfig, SeqBnConfig
from common import REPO, fresh, in_float64, save, write_json
from derived import head, randomize, start, write_case
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
NAMES, WIDTH, ENTROPY = ["a", "b", "c"], 5, 0.1
CASES = {"mera": ("roberta-classify", SeqBnConfig), "mera-bert": ("bert-classify", DoubleSeqBnConfig)}
SEEDS = {"mera": 3, "mera-bert": 1}


class Merged(nn.Module):
    def __init__(self, model, config):
        super().__init__()
        self.model = model
        adapters.init(model)
        for name in [*NAMES, "merged"]:
            model.add_adapter(name, config=config(reduction_factor=24 / WIDTH))

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
        return self.adapter("merged") | head(self.model)

    def activations(self, name, inputs):
        """Those of each unit on all real tokens, by the module's path, `[tokens, units]`."""
        found, hooks, real = {}, [], inputs["attention_mask"].bool()
        for path, module in self.model.named_modules():
            if path.endswith(f"adapters.{name}.adapter_down"):
                key = "base_model.model." + path.replace(f"adapters.{name}.", "")
                keep = lambda _, __, output, key=key: found.update({key: output[real].detach()})
                hooks.append(module.register_forward_hook(keep))
        self.model.set_active_adapters(name)
        with torch.no_grad():
            self.model(**inputs)
        for hook in hooks:
            hook.remove()
        return found


def exact(cost):
    rows, columns = linear_sum_assignment(cost)
    plan = np.zeros_like(cost)
    plan[rows, columns] = 1
    return plan


def sinkhorn(cost):
    kernel = np.exp(-cost / (ENTROPY * cost.mean()))
    v = np.ones(len(cost))
    for _ in range(20_000):
        u = 1 / (kernel @ v)
        v = 1 / (kernel.T @ u)
    return u[:, None] * kernel * v


def merged(run, units, plan):
    """The mean of adapters whose units, described by the rows of `units`, go where those of the first are; sums, without a plan."""
    result = {}
    for path in run.adapter("a"):
        if path.endswith("down.weight"):
            stem = path.removesuffix("down.weight")
            parts = {leaf: [] for leaf in ["down.weight", "down.bias", "up.weight", "up.bias"]}
            for name in NAMES:
                own = {leaf: run.adapter(name)[stem + leaf].detach().double() for leaf in parts}
                p = np.eye(WIDTH) if plan is None else plan(cdist(units[name][stem], units["a"][stem]))
                p = torch.from_numpy(p)
                parts["down.weight"].append(p.T @ own["down.weight"])
                parts["down.bias"].append(p.T @ own["down.bias"])
                parts["up.weight"].append(own["up.weight"] @ p)
                parts["up.bias"].append(own["up.bias"])
            scale = 1 if plan is None else 1 / len(NAMES)
            result |= {stem + leaf: scale * sum(all) for leaf, all in parts.items()}
    return result


def by_weights(run):
    units = {}
    for name in NAMES:
        own = run.adapter(name)
        stems = [path.removesuffix("down.weight") for path in own if path.endswith("down.weight")]
        of = lambda stem: torch.cat([own[stem + "down.weight"], own[stem + "down.bias"][:, None]], 1)
        units[name] = {stem: of(stem).detach().double().numpy() for stem in stems}
    return units


def by_activations(run, inputs):
    found = {name: run.activations(name, inputs) for name in NAMES}
    return {
        name: {path.removesuffix("down"): seen.T.double().numpy() for path, seen in own.items()}
        for name, own in found.items()
    }


def every(run, inputs):
    weights, acts = by_weights(run), by_activations(run, inputs)
    return {
        "sum": merged(run, weights, None),
        "weights": merged(run, weights, exact),
        "sinkhorn": merged(run, weights, sinkhorn),
        "activations": merged(run, acts, exact),
    }


def settings(config):
    double = config is DoubleSeqBnConfig
    placement, activation = ("houlsby", "swish") if double else ("pfeiffer", "relu")
    return {"bottleneck": WIDTH, "placement": placement, "activation": activation, "train_layernorm": False}


def make(name):
    base, config = CASES[name]
    gen, inputs, model = start(name, base, SEEDS[name])
    run = Merged(model, config).eval()
    for one in NAMES:
        randomize(run.adapter(one), gen)
    randomize(head(model), gen)
    with in_float64():
        ways = every(run.double(), inputs)
    run = run.float()
    with torch.no_grad():
        for path, parameter in run.adapter("merged").items():
            parameter.copy_(ways["activations"][path])
    model.set_active_adapters("merged")
    beside = {f"{way}.{path}": tensor for way, tensors in ways.items() for path, tensor in tensors.items()}
    fields = {"peft_type": "MERA", "strategy": "activations", "adapter": settings(config)}
    return run, inputs, fields, beside


if __name__ == "__main__":
    for case, (base, config) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
        run = make(case)[0]
        for one in NAMES:
            folder = fresh(ADDITIVE / case / one)
            save(folder / "adapter_model.safetensors", run.adapter(one) | head(run.model))
            fields = {"base_model_name_or_path": base, "task_type": "SEQ_CLS", "peft_type": "SEQUENTIAL_ADAPTER"}
            write_json(folder / "adapter_config.json", fields | settings(config))
