"""Writes peft-quant/tests/golden/{gptq*,awq}: a small LLaMA as GPTQ's and AWQ's programs save one, what it computes, and with PEFT's LoRA.

Those programs need a GPU. The words are made by the published formats (quant.py), then read one by one with loops of Python that
follow the formats' own text; the dense weights so found are what transformers and PEFT run on.

Usage: python scripts/golden/quant_words.py
"""

import torch
from common import REPO, fresh, generator, randomize_model, read_json, save, write_json
from methods import randomize_adapter, trainable
from peft import LoraConfig, TaskType, get_peft_model
from quant import grouped
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = REPO / "peft-quant" / "tests" / "golden"
MODULE = "model.layers.0.self_attn.k_proj"

# Bits, inputs of a group, whether zero points are symmetric, whether inputs are ordered by activity, and the format.
KINDS = {
    "gptq": (4, 32, False, False, "gptq"),
    "gptq-2": (2, 32, True, False, "gptq"),
    "gptq-3": (3, 32, True, True, "gptq"),
    "gptq-4-order": (4, 16, False, True, "gptq_v2"),
    "gptq-8": (8, -1, True, False, "gptq_v2"),
    "awq": (4, 32, False, False, "awq"),
}


def field(words, i, bits):
    """The i-th integer of a column of words, as one long number with its lowest bits first."""
    number = sum(int(word) << (32 * k) for k, word in enumerate(words))
    return number >> (bits * i) & (2**bits - 1)


def awq_field(words, i):
    """The i-th output in a row of AutoAWQ's words: `order_map` of its gemm says which output each field has."""
    place = [0, 2, 4, 6, 1, 3, 5, 7].index(i % 8)
    return int(words[i // 8]) >> (4 * place) & 15


def dense(words, bits, size, kind):
    """The matrix [out, in] that words stand for."""
    qweight, qzeros = words["qweight"].tolist(), words["qzeros"].tolist()
    outputs = words["scales"].shape[1]
    groups = words["g_idx"].tolist() if "g_idx" in words else [i // size for i in range(len(qweight))]
    columns = list(zip(*qweight))
    value = torch.zeros(outputs, len(groups))
    for j in range(outputs):
        for i, group in enumerate(groups):
            if kind == "awq":
                code, zero = awq_field(qweight[i], j), awq_field(qzeros[group], j)
            else:
                code, zero = field(columns[j], i, bits), field(qzeros[group], j, bits)
                zero += kind == "gptq"
            value[j, i] = words["scales"][group, j].float() * float(code - zero)
    return value


def tensors(module, parts, kind):
    words = {"qweight": parts["awq.qweight" if kind == "awq" else "qweight"], "qzeros": parts[f"{kind}.qzeros"], "scales": parts["scales"]}
    if kind != "awq":
        words["g_idx"] = parts["g_idx"]
        if kind == "gptq":
            # As GPTQ's first programs do, whether the model has a bias or not.
            words["bias"] = torch.zeros(parts["scales"].shape[1]).half()
    return {f"{module}.{part}": (value.view(torch.int32) if value.dtype == torch.uint32 else value) for part, value in words.items()}


def settings(bits, size, symmetric, order, kind):
    if kind == "awq":
        return {"bits": bits, "group_size": size, "modules_to_not_convert": None, "quant_method": "awq", "version": "gemm", "zero_point": True}
    fields = {"bits": bits, "checkpoint_format": kind, "damp_percent": 0.01, "desc_act": order, "group_size": size}
    return fields | {"quant_method": "gptq", "static_groups": False, "sym": symmetric, "true_sequential": True}


@torch.no_grad()
def write(name, bits, size, symmetric, order, kind):
    gen = generator(f"quant words {name}")
    folder = fresh(FOLDER / name)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    randomize_model(model, gen)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    file = {key: value for key, value in model.state_dict().items() if "_proj" not in key}
    for module, linear in model.named_modules():
        if "_proj" not in module:
            continue
        inputs = linear.weight.shape[1]
        group = inputs if size == -1 else size
        permutation = torch.randperm(inputs, generator=gen) if order else None
        weight = linear.weight * 0.5
        if kind == "gptq" and not symmetric:
            # A zero point of 0 cannot be stored: each group has a negative weight.
            weight[:, :: min(group, 16)] = -weight[:, :: min(group, 16)].abs() - 0.1
        parts = grouped(weight, bits, group, symmetric, permutation)
        words = tensors(module, parts, kind)
        file |= words
        own = {key.rsplit(".", 1)[1]: value for key, value in words.items()}
        unsigned = {key: own[key].view(torch.uint32) for key in ("qweight", "qzeros")}
        linear.weight.copy_(dense(own | unsigned, bits, group, kind))
    save(folder / "model.safetensors", file)
    fields = read_json(folder / "config.json") | {"quantization_config": settings(bits, size, symmetric, order, kind)}
    write_json(folder / "config.json", fields)

    ids = torch.randint(3, 32, (2, 9), generator=gen)
    expected = {MODULE: model.get_submodule(MODULE).weight.clone(), "input_ids": ids, "logits": model(input_ids=ids).logits}
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=3, lora_alpha=5, target_modules="all-linear")
    adapted = get_peft_model(model, lora)
    randomize_adapter(trainable(adapted), gen)
    adapted.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    fields = read_json(folder / "adapter" / "adapter_config.json")
    fields["target_modules"].sort()
    fields["base_model_name_or_path"] = name
    write_json(folder / "adapter" / "adapter_config.json", fields)
    expected["adapted"] = adapted.eval()(input_ids=ids).logits
    print(name, (expected["adapted"] - expected["logits"]).abs().max().item(), expected["logits"].abs().max().item())
    save(folder / "expected.safetensors", expected)


if __name__ == "__main__":
    for name, kind in KINDS.items():
        write(name, *kind)
