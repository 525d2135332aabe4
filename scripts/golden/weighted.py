"""Writes what PEFT's `add_weighted_adapter` makes of LoRAs by each of its combination types: peft-reparam/tests/golden/weighted-*/.

Usage: python scripts/golden/weighted.py   (after models.py and seq_models.py)

The adapters in directories `a` to `d` (c has another rank), `inputs.safetensors`, and `cases.json`, a list; of case I
`expected.safetensors` has `I/logits` and `I/KEY` of the file. The random masks are those of `Random` under the names of our tensors.
"""

import copy
import json
import warnings

import torch
from common import MODELS, REPO, batch, fresh, generator, normal, read_json, save, write_json
from noise import Random
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraModel
from peft.utils import merge_utils
from seq_models import seq_batch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

warnings.filterwarnings("ignore")

FOLDER = REPO / "peft-reparam" / "tests" / "golden"
MODULES = {"bert-classify": ["query", "value", "output.dense"], "llama": ["q_proj", "v_proj", "down_proj"]}
CLASSES = {"bert-classify": AutoModelForSequenceClassification, "llama": AutoModelForCausalLM}
PARTS = {
    "attention.self.query": "query",
    "attention.self.value": "value",
    "attention.output.dense": "output",
    "output.dense": "down",
    "self_attn.q_proj": "query",
    "self_attn.v_proj": "value",
    "mlp.down_proj": "down",
}
# Rank and alpha; the last one's alpha makes its scale negative.
ADAPTERS = {"a": (3, 5), "b": (3, 2), "c": (2, 7), "d": (3, -4)}
SEED = 5


def cases():
    same, other = ["a", "b", "d"], ["a", "c"]
    pruned = {"density": 0.4}
    yield "linear", same, [0.7, -0.4, 0.2], {}
    yield "linear", ["a"], [-1.0], {}
    yield "cat", other, [0.6, -1.3], {}
    yield "svd", other, [0.6, 0.9], {}
    yield "svd", same, [0.6, 0.9, -0.3], {"svd_rank": 5}
    for majority in ["total", "frequency"]:
        yield "ties", same, [0.7, 0.4, 0.9], pruned | {"majority_sign_method": majority}
        yield "ties_svd", other + ["b"], [0.7, -0.4, 1.1], pruned | {"majority_sign_method": majority}
        yield "dare_ties", same, [0.7, 0.4, 0.9], pruned | {"majority_sign_method": majority}
        yield "dare_ties_svd", other + ["b"], [0.7, 0.4, -1.1], pruned | {"majority_sign_method": majority}
    yield "dare_linear", same, [0.7, -0.4, 0.2], pruned
    yield "dare_linear_svd", other, [0.7, 0.4], pruned
    yield "magnitude_prune", same, [0.7, -0.4, 0.2], pruned
    yield "magnitude_prune_svd", other, [0.7, 0.4], pruned


def site(module):
    stack, path = ("encoder", module.split("encoder.layer.")) if "encoder" in module else ("decoder", module.split("layers."))
    layer, path = path[1].split(".", 1)
    return f"{stack}.{layer}.{PARTS[path]}"


class Masks:
    """Takes the place of the package's random masks. They are drawn in the order of our matrices, which lie turned."""

    def __init__(self, model):
        self.sites = {id(module): site(name) for name, module in model.named_modules() if hasattr(module, "lora_A")}
        self.names = []

    def __enter__(self):
        self.pruning = merge_utils.random_pruning
        self.both = {
            name: getattr(LoraModel, name)
            for name in ["_generalized_task_arithmetic_weighted_adapter", "_svd_generalized_task_arithmetic_weighted_adapter"]
        }
        factors, products = self.both.values()

        def on_factors(model, kind, adapters, weights, target, *rest):
            own = self.sites[id(target)]
            self.names = [f"dare.{i}.factors.{own}.{leaf}" for leaf in "ab" for i in range(len(adapters))]
            return factors(model, kind, adapters, weights, target, *rest)

        def on_products(model, kind, adapters, weights, rank, target, *rest, **named):
            self.names = [f"dare.{i}.products.{self.sites[id(target)]}" for i in range(len(adapters))]
            return products(model, kind, adapters, weights, rank, target, *rest, **named)

        def pruned(tensor, density, rescale):
            random = Random(SEED, self.names.pop(0))
            kept = [float(random.unit() < density) for _ in range(tensor.numel())]
            mask = torch.tensor(kept).reshape(tensor.T.shape).T
            return tensor * mask / density if rescale else tensor * mask

        LoraModel._generalized_task_arithmetic_weighted_adapter = on_factors
        LoraModel._svd_generalized_task_arithmetic_weighted_adapter = on_products
        merge_utils.random_pruning = pruned
        return self

    def __exit__(self, *_):
        merge_utils.random_pruning = self.pruning
        for name, function in self.both.items():
            setattr(LoraModel, name, function)


@torch.no_grad()
def write(base):
    folder = fresh(FOLDER / f"weighted-{base.split('-')[0]}")
    gen = generator(folder.name)
    model = None
    for name, (rank, alpha) in ADAPTERS.items():
        # Without a task type the head is the model's: the package refuses adapters that bring one each.
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=MODULES[base])
        if model is None:
            loaded = CLASSES[base].from_pretrained(MODELS / base, attn_implementation="eager").eval()
            model = get_peft_model(loaded, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        for path, parameter in model.named_parameters():
            if f".{name}." in path and "lora_" in path:
                parameter.copy_(normal(gen, parameter.shape, 0.3))
    for name in ADAPTERS:
        model.save_pretrained(folder, selected_adapters=[name])
        settings = read_json(folder / name / "adapter_config.json") | {"base_model_name_or_path": base}
        write_json(folder / name / "adapter_config.json", settings)
        (folder / name / "README.md").unlink(missing_ok=True)
    (folder / "README.md").unlink(missing_ok=True)
    if base == "llama":
        inputs = {"input_ids": torch.randint(4, 97, (3, 8), generator=gen)}
    else:
        inputs = batch(gen, "bert", [11, 8, 3])
    save(folder / "inputs.safetensors", inputs)
    told, expected = [], {}
    for i, (kind, adapters, weights, settings) in enumerate(cases()):
        with Masks(model):
            model.add_weighted_adapter(adapters, weights, f"case{i}", combination_type=kind, **settings)
        model.set_adapter(f"case{i}")
        expected[f"{i}/logits"] = model(**inputs).logits
        expected |= {f"{i}/{key}": value for key, value in get_peft_model_state_dict(model, adapter_name=f"case{i}").items()}
        told.append({"type": kind, "adapters": adapters, "weights": weights} | settings)
    save(folder / "expected.safetensors", expected)
    write_json(folder / "cases.json", told)


if __name__ == "__main__":
    for base in MODULES:
        write(base)
