"""Writes LoRA adapters of PEFT as llama.cpp's converter has them, with the package gguf, beside the directories they are from.

The converter (convert_lora_to_gguf.py) names tensors as the model's, with .lora_a and .lora_b behind, and turns rows of heads as it
turns those of a model's queries and keys: here the rows of the second factor. Of the word table it turns the first factor over.

Usage: python scripts/golden/gguf_adapters.py   (after methods.py)
"""

import gguf
from common import MODELS, read_json
from gguf_files import finish, interleave
from methods import LLAMA, REPARAM
from safetensors.torch import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(folder):
    model, settings = read_json(MODELS / LLAMA / "config.json"), read_json(folder / "adapter" / "adapter_config.json")
    heads = {"attn_q": model["num_attention_heads"], "attn_k": model["num_key_value_heads"]}
    writer = gguf.GGUFWriter(folder / "adapter.gguf", "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
    for name, tensor in load_file(folder / "adapter" / "adapter_model.safetensors").items():
        if ".base_layer." in name:
            continue
        if not name.startswith("base_model.model.model.layers."):
            table = "output" if "lm_head" in name else "token_embd"
            factor = f"lora_{name.removesuffix('.weight')[-1].lower()}"
            turned = table == "token_embd" and factor == "lora_a"
            writer.add_tensor(f"{table}.weight.{factor}", (tensor.T if turned else tensor).numpy().copy())
            continue
        layer, module = name.removeprefix("base_model.model.model.layers.").split(".", 1)
        module, factor = module.removesuffix(".weight").rsplit(".", 1)
        part, factor = NAMES[module], factor.lower()
        values = tensor.numpy()
        if factor == "lora_b" and part in heads:
            values = interleave(values, heads[part])
        writer.add_tensor(f"blk.{layer}.{part}.weight.{factor}", values.copy())
    finish(writer)


if __name__ == "__main__":
    for case in ["lora-llama", "lora-llama-all", "tables-llama"]:
        write(REPARAM / case)
