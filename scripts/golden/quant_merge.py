"""Writes peft-quant/tests/golden/merged.safetensors: packed matrices before and after PEFT merged a LoRA into them, on a CPU.

A case is the tensors `CASE.before.PART`, `CASE.update` and `CASE.after.PART`, with the parts that bitsandbytes has.

Usage: python scripts/golden/quant_merge.py
"""

import bitsandbytes as bnb
import torch
from common import REPO, generator, normal, save
from peft import LoraConfig, get_peft_model
from torch import nn

# Whole blocks in a row: see quant.py.
OUTPUTS, INPUTS = 24, 128


def four_bit(book, nested):
    layer = bnb.nn.Linear4bit(INPUTS, OUTPUTS, bias=False, compute_dtype=torch.float32, compress_statistics=nested, quant_type=book)
    return layer, "is_loaded_in_4bit"


def eight_bit():
    return bnb.nn.Linear8bitLt(INPUTS, OUTPUTS, bias=False, has_fp16_weights=False), "is_loaded_in_8bit"


CASES = {
    "nf4": four_bit("nf4", False),
    "fp4": four_bit("fp4", False),
    "nf4-double": four_bit("nf4", True),
    "int8": eight_bit(),
}


def parts(layer):
    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear8bitLt):
        state = layer.state
        codes, scales = (state.CB, state.SCB) if state.CB is not None else (weight.CB, weight.SCB)
        return {"codes": codes, "scales": scales}
    state = weight.quant_state
    nested = {"nested_absmax": state.state2.absmax, "offset": state.offset.reshape(1)} if state.nested else {}
    return {"bytes": weight.data.flatten(), "absmax": state.absmax} | nested


def case(name):
    layer, loaded = CASES[name]
    gen = generator(f"merge {name}")
    layer.weight.data.copy_(normal(gen, (OUTPUTS, INPUTS), 0.05))
    model = nn.ModuleDict({"map": layer.to("cpu")})
    setattr(model, loaded, True)
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=["map"]))
    lora = model.base_model.model["map"]
    for factor, std in ((lora.lora_A, 0.2), (lora.lora_B, 0.1)):
        factor["default"].weight.data.copy_(normal(gen, factor["default"].weight.shape, std))
    found = {f"{name}.before.{part}": value.clone() for part, value in parts(lora.base_layer).items()}
    found[f"{name}.update"] = lora.get_delta_weight("default")
    model.merge_adapter()
    return found | {f"{name}.after.{part}": value for part, value in parts(lora.base_layer).items()}


if __name__ == "__main__":
    tensors = {key: value for name in CASES for key, value in case(name).items()}
    save(REPO / "peft-quant" / "tests" / "golden" / "merged.safetensors", tensors)
    for key, value in tensors.items():
        print(key, tuple(value.shape), value.dtype)
