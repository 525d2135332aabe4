"""Finished adapters in the settings that PEFT and the tools around it write: peft-bench/tests/golden/finished/.

Usage: python scripts/golden/finished.py   (after models.py and seq_models.py)

`cases.json`: of each case its model, the `adapter_config.json` without the fields that are at their default, and what our program
says: a word of each warning, or the words of a refusal. `tensors.safetensors`: `CASE/KEY` of the adapter's file and `CASE/logits`, of
`MODEL/input_ids` (T5: with `MODEL/labels`), as `PeftModel.from_pretrained` computes them from these files.
"""

import copy
import json
import os
import tempfile
import warnings
from pathlib import Path

import torch
from common import MODELS, REPO, fresh, generator, normal, read_json, save, write_json
from methods import base_model, randomize_adapter, trainable
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file

warnings.filterwarnings("ignore")

FOLDER = REPO / "peft-bench" / "tests" / "golden" / "finished"
LLAMA, T5, ROBERTA, BERT, T5_EVEN = "llama", "t5", "roberta-classify", "bert-classify", "t5-even"
LLAMA_TIED, BERT_MLM, ROBERTA_MLM = "llama-llama3", "bert-mlm", "roberta-mlm"
TASKS = {
    LLAMA: "CAUSAL_LM",
    LLAMA_TIED: "CAUSAL_LM",
    T5: "SEQ_2_SEQ_LM",
    T5_EVEN: "SEQ_2_SEQ_LM",
    ROBERTA: "SEQ_CLS",
    BERT: "SEQ_CLS",
    BERT_MLM: None,
    ROBERTA_MLM: None,
}


def lora(**settings):
    return LoraConfig(r=2, lora_alpha=3, **settings)


def ada(**settings):
    return AdaLoraConfig(init_r=2, target_r=1, lora_alpha=3, orth_reg_weight=0.0, total_step=10, **settings)


# name: (model, configuration, edits of the file, words of the warnings)
CASES = {
    # Names and patterns that meet nothing.
    "idle-names": (
        LLAMA,
        lora(
            target_modules=["q_proj", "v_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 3},
            alpha_pattern={r"layers\.[02]\..*": 5},
        ),
        {
            "target_modules": ["query_key_value", "v_proj", "q_proj", "W_pack"],
            "rank_pattern": {"wqkv": 7, "layers.1.self_attn.q_proj": 3, "v_pro": 5},
            "alpha_pattern": {"c_attn": 1, r"layers\.[02]\..*": 5},
        },
        ["query_key_value", "W_pack", "wqkv", "v_pro", "c_attn"],
    ),
    "idle-names-ia3": (
        BERT,
        IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
        {"target_modules": ["key", "value", "output.dense", "k_proj"], "feedforward_modules": ["output.dense", "k_proj"]},
        ["k_proj"],
    ),
    "idle-names-adalora": (T5, ada(target_modules=["q", "v"]), {"target_modules": ["q", "v", "c_attn"]}, ["c_attn"]),
    # Layers.
    "layers-one": (LLAMA, lora(target_modules=["q_proj", "v_proj"], layers_to_transform=1, layers_pattern="layers"), {}, []),
    "layers-list": (
        LLAMA,
        lora(target_modules=["q_proj", "model.layers.1.self_attn.v_proj"], layers_to_transform=[0, 2]),
        {},
        [],
    ),
    "layers-patterns": (
        LLAMA,
        lora(target_modules=["o_proj", "down_proj"], layers_to_transform=[2], layers_pattern=["h", "layers"]),
        {},
        ["h"],
    ),
    "layers-beyond": (
        LLAMA,
        lora(target_modules=["q_proj"], layers_to_transform=[1]),
        {"layers_to_transform": [1, 30]},
        ["30"],
    ),
    "layers-roberta": (
        ROBERTA,
        lora(target_modules=["query", "output.dense"], layers_to_transform=[0, 1], layers_pattern="layer"),
        {},
        [],
    ),
    "layers-bert": (BERT, lora(target_modules=["value"], layers_to_transform=[1], layers_pattern=[]), {}, []),
    # Of both stacks, and with a pattern that is met in none but by the sub-layers.
    "layers-t5": (T5, lora(target_modules=["q", "v"], layers_to_transform=[1]), {}, []),
    "layers-t5-layer": (T5, lora(target_modules=["q"], layers_to_transform=[1], layers_pattern="layer"), {}, []),
    "layers-adalora": (LLAMA, ada(target_modules=["q_proj"], layers_to_transform=[0]), {}, []),
    # Modules that are left out.
    "exclude-names": (
        LLAMA,
        lora(target_modules=["q_proj", "v_proj"], exclude_modules=["layers.1.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]),
        {},
        [],
    ),
    "exclude-idle": (LLAMA, lora(target_modules=["q_proj"], exclude_modules=["wte", "layers.1.self_attn.q_proj"]), {}, ["wte"]),
    "exclude-pattern": (LLAMA, lora(target_modules="all-linear", exclude_modules=r".*\.mlp\..*|.*layers\.0\..*"), {}, []),
    "exclude-t5": (T5, lora(target_modules=["q", "v"], exclude_modules=r".*EncDecAttention.*"), {}, []),
    "exclude-roberta": (ROBERTA, lora(target_modules=["dense"], exclude_modules=["attention.output.dense"]), {}, []),
    "exclude-bert": (BERT, lora(target_modules=["query", "dense"], exclude_modules=["pooler.dense", "output.dense"]), {}, []),
    "exclude-ia3": (
        LLAMA,
        IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            exclude_modules=["layers.1.mlp.down_proj"],
        ),
        {},
        [],
    ),
    "exclude-adalora": (BERT, ada(target_modules=["query", "value"], exclude_modules=["layer.0.attention.self.value"]), {}, []),
    # What is saved whole is not adapted.
    "all-linear-roberta": (ROBERTA, lora(target_modules="all-linear"), {}, []),
    "all-linear-bert": (BERT, lora(target_modules="all-linear"), {}, []),
    "all-linear-t5": (T5, lora(target_modules="all-linear"), {}, []),
    "all-linear-text": (LLAMA, lora(target_modules="all-linear"), {"target_modules": "All-Linear"}, []),
    "dense-roberta": (ROBERTA, lora(target_modules=["query", "dense", "out_proj"]), {}, []),
    # Python's expressions.
    "look-ahead": (LLAMA, lora(target_modules=r"^(?!.*(gate|lm_head)).*_proj$"), {}, []),
    "look-behind": (LLAMA, lora(target_modules=r".*(?<!mlp)\.\w+_proj"), {}, []),
    "look-ahead-pattern": (
        LLAMA,
        lora(target_modules=["q_proj", "k_proj"], rank_pattern={r"(?!layers\.1).*\.q_proj": 3, r"layers\.(?=1)\d\..*k_proj": 1}),
        {},
        [],
    ),
    "backreference": (BERT, lora(target_modules=r".*\.(\d)\.attention\.(\w)\w+\.\w+(?<=que)ry|.*layer\.1\..*output\.dense"), {}, []),
    "expression-ia3": (
        T5,
        IA3Config(target_modules=r".*\.(k|v|wo)", feedforward_modules=r"(?!encoder).*\.wo"),
        {},
        [],
    ),
    # How it started, where the base stays as it is.
    "start-gaussian": (LLAMA, lora(target_modules=["q_proj"], init_lora_weights="gaussian"), {}, []),
    "start-orthogonal": (LLAMA, lora(target_modules=["q_proj"], init_lora_weights="orthogonal"), {}, []),
    "start-eva": (LLAMA, lora(target_modules=["q_proj"]), {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}, ["eva_config"]),
    "start-mica": (LLAMA, lora(target_modules=["q_proj"], init_lora_weights="mica"), {}, []),
    "start-false": (LLAMA, lora(target_modules=["q_proj"], init_lora_weights=False), {}, []),
    "start-ga": (LLAMA, lora(target_modules=["q_proj"], init_lora_weights="lora_ga"), {}, ["lora_ga"]),
    # .. and where it is changed, which PEFT does again.
    "start-pissa": (LLAMA, lora(target_modules=["q_proj", "down_proj"], init_lora_weights="pissa"), {}, ["pissa"]),
    "start-pissa-ranks": (
        BERT,
        lora(
            target_modules=["query", "intermediate.dense"],
            init_lora_weights="pissa",
            use_rslora=True,
            rank_pattern={"query": 3},
            alpha_pattern={"layer.1.attention.self.query": 7},
        ),
        {},
        ["pissa"],
    ),
    "start-olora": (LLAMA, lora(target_modules=["k_proj", "up_proj"], init_lora_weights="olora"), {}, ["olora"]),
    "start-olora-t5": (T5, lora(target_modules=["q", "wo"], init_lora_weights="olora"), {}, ["olora"]),
    # Fields that do not matter, among them some that PEFT does not have.
    "extra-fields": (
        LLAMA,
        lora(target_modules=["q_proj"]),
        {
            "fan_in_fan_out": True,
            "unsloth_fixed": True,
            "base_model_class": "LlamaForCausalLM",
            "corda_config": {"corda_method": "kpm"},
            "runtime_config": {"ephemeral_gpu_offload": True},
            "qalora_group_size": 32,
            "target_parameters": ["experts.gate_up_proj"],
            "layer_replication": [],
            "exclude_modules": [],
            "layers_to_transform": None,
            "rank_pattern": {},
        },
        ["unsloth_fixed", "base_model_class", "corda_config", "runtime_config", "qalora_group_size", "fan_in_fan_out", "experts.gate_up_proj"],
    ),
    "extra-fields-adalora": (LLAMA, ada(target_modules=["q_proj"]), {"r": 4, "use_rslora": True, "alpha_pattern": {"q_proj": 9}}, ["r", "use_rslora", "alpha_pattern"]),
    # What ties tables where none is tied, or none is adapted.
    "tying-untied": (LLAMA, lora(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True), {}, ["ensure_weight_tying"]),
    "tying-saved": (LLAMA, lora(target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True), {}, ["ensure_weight_tying"]),
    "tying-idle": (LLAMA_TIED, lora(target_modules=["q_proj"], ensure_weight_tying=True), {}, ["ensure_weight_tying"]),
    # Parts of a head, in the model's own.
    "head-dense": (ROBERTA_MLM, lora(target_modules=["query"], modules_to_save=["lm_head.dense"]), {}, []),
    "head-norm": (ROBERTA_MLM, lora(target_modules=["query"], modules_to_save=["layer_norm"]), {}, []),
    "head-transform": (BERT_MLM, lora(target_modules=["query"], modules_to_save=["transform.dense"]), {}, []),
    # PEFT counts the encoder's layers; the decoder has the prefix.
    "prefix-t5-more": (T5_EVEN, PrefixTuningConfig(num_virtual_tokens=3, num_layers=5), {}, []),
    "prefix-t5-six": (T5_EVEN, PrefixTuningConfig(num_virtual_tokens=3, num_layers=6), {}, []),
}

@torch.no_grad()
def write(name, folder, tensors):
    model_name, config, edits, warns = CASES[name]
    gen = generator(f"finished/{name}")
    config = copy.deepcopy(config)
    config.task_type = TASKS[model_name]
    torch.manual_seed(0)
    model = get_peft_model(base_model(model_name), config)
    learned = trainable(model)
    if name == "start-mica":  # B stays as it started
        learned |= {k: v for k, v in model.named_parameters() if "lora_B" in k}
    randomize_adapter(learned, gen)
    model.save_pretrained(folder)
    settings = read_json(folder / "adapter_config.json") | edits
    for key, value in settings.items():
        if isinstance(value, list) and all(isinstance(x, str) for x in value):
            settings[key] = sorted(value)
    write_json(folder / "adapter_config.json", settings)
    # AdaLoRA computes no loss, which labels ask for, where it is not trainable.
    again = PeftModel.from_pretrained(base_model(model_name), folder, is_trainable=config.peft_type == "ADALORA").eval()
    inputs = {"input_ids": tensors[f"{model_name}/input_ids"]}
    if f"{model_name}/labels" in tensors:
        inputs["labels"] = tensors[f"{model_name}/labels"]
    tensors[f"{name}/logits"] = again(**inputs).logits
    bare = base_model(model_name).eval()(**inputs).logits
    assert (tensors[f"{name}/logits"] - bare).abs().max() > 1e-2, "the adapter does something"
    tensors |= {f"{name}/{key}": value for key, value in load_file(folder / "adapter_model.safetensors").items()}
    default = type(config)(**({"total_step": 1} if config.peft_type == "ADALORA" else {})).to_dict()
    kept = {k: v for k, v in settings.items() if k not in default or v != default[k] or k in ("peft_type", "total_step")}
    kept.pop("auto_mapping", None)
    return {"name": name, "model": model_name, "config": kept, "warns": warns}


def main():
    os.chdir(MODELS)
    tensors = {}
    for model in TASKS:
        gen = generator(f"finished/{model}")
        tensors[f"{model}/input_ids"] = torch.randint(4, 97, (2, 6), generator=gen)
        if model.startswith("t5"):
            tensors[f"{model}/labels"] = torch.randint(4, 97, (2, 4), generator=gen)
    cases = []
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            cases.append(write(name, Path(folder), tensors))
        print(name)
    fresh(FOLDER)
    (FOLDER / "cases.json").write_text("[\n" + ",\n".join(json.dumps(case, sort_keys=True) for case in cases) + "\n]\n")
    save(FOLDER / "tensors.safetensors", tensors)


if __name__ == "__main__":
    main()
