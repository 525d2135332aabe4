"""Writes peft-reparam/tests/golden/qlora/: a small LLaMA, and PEFT's LoRA on what bitsandbytes makes of it on a CPU.

A case is like those of methods.py, on the dense model beside it: `adapter` is PEFT's, and `merged` are logits of PEFT's own merge, which
packs again. Gradients and steps are checked against the same LoRA in float64 on a model that holds the decoded weights.

Usage: python scripts/golden/qlora.py
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import copy

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
from common import REPO, fresh, generator, in_float64, randomize_model, read_json, save, write_json
from methods import LENGTHS, UNLABELLED, logits, randomize_adapter, reference, trainable
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from seq_models import LLAMA, seq_batch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

FOLDER = REPO / "peft-reparam" / "tests" / "golden" / "qlora"
CAUSAL = TaskType.CAUSAL_LM
# Rows of whole blocks: see `faults` in quant.py for why.
SIZES = dict(LLAMA, hidden_size=64, intermediate_size=128, num_hidden_layers=1)
CASES = {
    "nf4": dict(bnb_4bit_quant_type="nf4"),
    "nf4-double": dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4-double": dict(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True),
}


def quantized(settings):
    config = BitsAndBytesConfig(load_in_4bit=True, **settings)
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER / "model",
        dtype=torch.float32,
        quantization_config=config,
        device_map="cpu",
        attn_implementation="eager",
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # Its products in bf16, which it has for inference on some machines.
            module.support_avx512bf16_for_cpu = False
    return model


@torch.no_grad()
def decoded(model):
    """The dense model with the weights that this one decodes to."""
    dense = AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32, attn_implementation="eager")
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            dense.get_submodule(name).weight.copy_(F.dequantize_4bit(module.weight.data, module.weight.quant_state))
    return dense


def write_case(name, settings):
    print(name)
    folder = fresh(FOLDER / name)
    gen = generator(f"qlora {name}")
    inputs = seq_batch(gen, "llama", LENGTHS, None, UNLABELLED)
    base = quantized(settings)
    dense = decoded(base)
    lora = LoraConfig(task_type=CAUSAL, r=3, lora_alpha=5, target_modules="all-linear")
    model = get_peft_model(base, copy.deepcopy(lora))
    randomize_adapter(trainable(model), gen)
    save(folder / "inputs.safetensors", inputs)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    settings_file = folder / "adapter" / "adapter_config.json"
    fields = read_json(settings_file)
    fields["target_modules"].sort()
    fields["base_model_name_or_path"] = "model"
    write_json(settings_file, fields)

    merged = PeftModel.from_pretrained(quantized(settings), folder / "adapter").merge_and_unload().eval()
    on_dense = get_peft_model(dense, copy.deepcopy(lora))
    on_dense.load_state_dict({k: v for k, v in model.state_dict().items() if "lora_" in k}, strict=False)
    double = on_dense.double()

    expected = reference(model, inputs)
    with torch.no_grad():
        expected["merged"] = logits(merged(**inputs))
    save(folder / "expected.safetensors", expected)
    with in_float64():
        exact = reference(double, inputs)
    for key in ["logits", "loss", "losses", "logits_final"]:
        print(f"  {key:13} {(expected[key] - exact[key]).abs().max():.1e}")
    for prefix in ["grad.", "final."]:
        worst = max((expected[k] - exact[k]).abs().max().item() for k in expected if k.startswith(prefix))
        print(f"  {prefix:13} {worst:.1e}")
    print(f"  merged        {(expected['merged'] - expected['logits']).abs().max():.1e} by packing again")


if __name__ == "__main__":
    fresh(FOLDER)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    randomize_model(model, generator("qlora model"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(0.5)
    model.save_pretrained(FOLDER / "model")
    (FOLDER / "model" / "generation_config.json").unlink()
    for case, settings in CASES.items():
        write_case(case, settings)
