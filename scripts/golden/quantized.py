"""Writes the reference cases of LoftQ and QA-LoRA with PEFT and bitsandbytes.

Usage: python scripts/golden/quantized.py [CASE ..]   (after models.py and seq_models.py)

LoftQ's starts are those of PEFT's `loftq_init` and `replace_lora_weights_loftq`, which ask for a GPU only by name: here bitsandbytes' kernels
for CPUs quantize. PEFT's QA-LoRA is for GPTQ's layers, which need a GPU: a linear map with matrices that are quantized here stands in
for one, and PEFT's own function computes the adapter beside it.
"""

import contextlib
import sys
from types import SimpleNamespace
from unittest import mock

import bitsandbytes as bnb
import numpy as np
import torch
from common import MODELS, REPO
from derived import head, randomize, start, write_case
from low_rank import Beside
from methods import CAUSAL, SEQ2SEQ, TASK, base_model, trainable
from peft import LoftQConfig, LoraConfig, get_peft_model, replace_lora_weights_loftq
from peft.tuners.lora.variants import QALoraLinearVariant
from peft.utils import loftq_utils
from torch import nn
from transformers import BitsAndBytesConfig

REPARAM = REPO / "peft-reparam" / "tests" / "golden"
ROBERTA, BERT, T5 = "roberta-classify", "bert-classify", "t5"


@contextlib.contextmanager
def without_gpu():
    """What is sent to "cuda" stays where it is."""

    def staying(to):
        def moved(self, *args, **kwargs):
            args = ["cpu" if arg == "cuda" else arg for arg in args]
            return to(self, *args, **{key: "cpu" if value == "cuda" else value for key, value in kwargs.items()})

        return moved

    own = bnb.nn.Params4bit.to
    with mock.patch.object(torch.Tensor, "to", staying(torch.Tensor.to)), mock.patch.object(bnb.nn.Params4bit, "to", staying(own)):
        yield


def replaced(base, settings):
    """The factors of `replace_lora_weights_loftq` on a model that bitsandbytes quantized as it was loaded."""
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = get_peft_model(base_model(base, quantization_config=four_bits, device_map="cpu"), LoraConfig(**settings))
    with without_gpu():
        replace_lora_weights_loftq(model, str(MODELS / base))
    return {name: value.detach() for name, value in model.named_parameters() if "lora_" in name}


class LoftQ(nn.Module):
    """PEFT's model at its start, the factors of the step before among its tensors if there are several steps."""

    def __init__(self, base, task, settings, bits, steps):
        super().__init__()
        pairs, decompose = [], loftq_utils._low_rank_decomposition

        def recorded(weight, reduced_rank):
            found = decompose(weight, reduced_rank=reduced_rank)
            pairs.append((found["R"], found["L"], (weight - found["L"] @ found["R"]).norm()))
            return found

        config = LoraConfig(task_type=task, init_lora_weights="loftq", loftq_config=LoftQConfig(loftq_bits=bits, loftq_iter=steps), **settings)
        with without_gpu(), mock.patch.object(loftq_utils, "_low_rank_decomposition", recorded):
            self.model = get_peft_model(base_model(base, attn_implementation="eager"), config).eval()
        sites = [name for name, module in self.model.named_modules() if hasattr(module, "base_layer") and hasattr(module, "lora_A")]
        assert len(pairs) == steps * len(sites)
        if (bits, steps) == (4, 1):
            other = replaced(base, settings)
            for site in sites:
                names = [f"{site}.lora_{factor}.default.weight" for factor in "AB"]
                own = [self.model.get_parameter(name) for name in names]
                assert torch.allclose(own[1] @ own[0], other[names[1]] @ other[names[0]], atol=1e-6)
                for parameter, name in zip(own, names):
                    parameter.data.copy_(other[name])
        self.own = dict(trainable(self.model))
        self.bases = {site: self.model.get_submodule(site).base_layer.weight.detach().clone() for site in sites}
        for i, site in enumerate(sites if steps > 1 else []):
            residuals = [residual.item() for *_, residual in pairs[i * steps : (i + 1) * steps]]
            assert residuals == sorted(residuals, reverse=True), "a step that the library would not take"
            for factor, value in zip("AB", pairs[(i + 1) * steps - 2]):
                self.own[f"{site}.lora_before_{factor}.weight"] = parameter = nn.Parameter(value.clone())
                self.register_parameter(f"before_{i}_{factor}", parameter)

    def forward(self, inputs):
        output = self.model(**inputs)
        return output.logits, output.loss

    def tensors(self):
        return self.own


def rounded(weight, bits, group):
    """A matrix `[out, in]` in integers with a scale and a zero point for each group of inputs, and back."""
    groups = weight.numpy().reshape(len(weight), -1, group)
    levels = np.float32(2**bits - 1)
    low, high = groups.min(2, keepdims=True, initial=0), groups.max(2, keepdims=True, initial=0)
    scale = (high - low) / levels
    zero = np.round(-low / scale)
    codes = np.clip(np.round(groups / scale) + zero, 0, levels)
    return torch.from_numpy((scale * (codes - zero)).reshape(weight.shape).astype(np.float32))


class QaLora(Beside):
    """PEFT's adapter of pooled inputs beside quantized matrices."""

    def __init__(self, model, base, sites, bits, group, r, alpha):
        super().__init__(model, base)
        self.bases = {}
        for path, module in self.at(sites):
            module.weight.data = self.bases[path] = rounded(module.weight.detach(), bits, group)
            a = self.new(f"{path}.lora_A.weight", r, module.in_features // group)
            b = self.new(f"{path}.lora_B.weight", module.out_features, r)
            layer = SimpleNamespace(
                lora_A={"default": SimpleNamespace(weight=a)},
                lora_B={"default": SimpleNamespace(weight=b)},
                lora_dropout={"default": nn.Identity()},
                scaling={"default": alpha / r},
                qalora_group_size={"default": group},
                in_features=module.in_features,
                training=True,
            )
            self.hook(module, lambda x, layer=layer: QALoraLinearVariant.forward(layer, "default", x, 0.0))


LOFTQ = {
    # Of this one the factors are those of `replace_lora_weights_loftq`.
    "loftq": (ROBERTA, 0, TASK, {"r": 3, "lora_alpha": 5, "target_modules": ["query", "value", "output.dense"]}, 4, 1),
    "loftq-steps": (BERT, 0, TASK, {"r": 3, "lora_alpha": 3, "target_modules": ["query", "key", "intermediate.dense"]}, 4, 3),
    "loftq-t5": (T5, 0, SEQ2SEQ, {"r": 2, "lora_alpha": 4, "target_modules": ["q", "v", "wo"]}, 8, 2),
}
QA_LORA = {
    "qa-lora": (ROBERTA, 0, {"sites": ["query", "value", "output.dense"], "bits": 4, "group": 8, "r": 3, "alpha": 2}),
    "qa-lora-bert": (BERT, 0, {"sites": ["key", "intermediate.dense"], "bits": 4, "group": 24, "r": 2, "alpha": 1}),
    "qa-lora-t5": (T5, 0, {"sites": ["q", "v", "wo"], "bits": 8, "group": 4, "r": 2, "alpha": 1}),
}


def loftq(name):
    base, seed, task, settings, bits, steps = LOFTQ[name]
    gen, inputs, _ = start(name, base, seed)
    run = LoftQ(base, task, settings, bits, steps)
    randomize(head(run.model.base_model.model), gen)
    config = {"peft_type": "LOFTQ", "lora_dropout": 0.0, "loftq_bits": bits, "loftq_iter": steps, "loftq_scaled": False} | settings
    return run, inputs, config, {f"base.{site}": value for site, value in run.bases.items()}


def qa_lora(name):
    base, seed, how = QA_LORA[name]
    gen, inputs, model = start(name, base, seed)
    run = QaLora(model, base, **how)
    randomize(run.tensors(), gen)
    config = {"peft_type": "QA_LORA", "r": how["r"], "lora_alpha": how["alpha"], "lora_dropout": 0.0, "bits": how["bits"]}
    config |= {"qalora_group_size": how["group"], "pooling": "peft", "target_modules": how["sites"]}
    return run, inputs, config, {f"base.base_model.model.{path}": value for path, value in run.bases.items()}


if __name__ == "__main__":
    for cases, make in [(LOFTQ, loftq), (QA_LORA, qa_lora)]:
        for case, (base, *_) in cases.items():
            if case in sys.argv[1:] or len(sys.argv) == 1:
                write_case(REPARAM / case, lambda: make(case), base)
