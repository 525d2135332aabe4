"""Writes peft-quant/tests/golden/bnb-*: a small LLaMA, as transformers saves it with bitsandbytes on a CPU, and what it computes.

Its matrices have rows of whole blocks: see `faults` in quant.py for why.

Usage: python scripts/golden/quant_models.py
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes.functional as F
import torch
from common import REPO, fresh, generator, randomize_model, save
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

FOLDER = REPO / "peft-quant" / "tests" / "golden"
MODULE = "model.layers.0.self_attn.k_proj"

KINDS = {
    "nf4": (torch.float32, dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "nf4-double": (torch.bfloat16, dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)),
    "fp4": (torch.float16, dict(load_in_4bit=True)),
    "fp4-double": (torch.float32, dict(load_in_4bit=True, bnb_4bit_use_double_quant=True)),
    "nf4-bf16-storage": (
        torch.float32,
        dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.bfloat16),
    ),
    "int8": (torch.float16, dict(load_in_8bit=True)),
}


def decoded(module):
    if hasattr(module, "state"):
        return F.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    return F.dequantize_4bit(module.weight.data, module.weight.quant_state)


@torch.no_grad()
def main():
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    gen = generator("quant models")
    randomize_model(model, gen)
    ids = torch.randint(3, 32, (2, 9), generator=gen)
    dense = fresh(FOLDER / "bnb-dense")
    model.save_pretrained(dense)
    (dense / "generation_config.json").unlink(missing_ok=True)
    for kind, (dtype, settings) in KINDS.items():
        folder = fresh(FOLDER / f"bnb-{kind}")
        quantized = AutoModelForCausalLM.from_pretrained(
            dense, dtype=dtype, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu"
        )
        quantized.save_pretrained(folder)
        for module in quantized.modules():
            # Its products in bf16, which it has for inference on some machines whatever the type.
            module.support_avx512bf16_for_cpu = False
        expected = {MODULE: decoded(quantized.get_submodule(MODULE)), "input_ids": ids}
        expected["logits"] = quantized(input_ids=ids).logits.float()
        save(folder / "expected.safetensors", expected)
        (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
