"""Writes the reference cases of heads: models that label tokens, adapters for them with their training, and adapters whose head is
another than that of their model.

Usage: python scripts/golden/heads.py   (after models.py, seq_models.py and methods.py's own cases)

peft-core/tests/golden/{bert,roberta,llama}-tokens, {bert,roberta}-answers, roberta-bare: models as those of models.py; those for
answers have `logits` [batch, tokens, 2].
peft-reparam/tests/golden/lora-{bert,roberta,llama}-tokens, lora-{bert,roberta}-answers: cases as those of methods.py.
peft-reparam/tests/golden/heads/CASE: `adapter`, and `expected.safetensors` with what it gives for the inputs of the model in MODELS:
`logits`, or `states` and `pooled`.
"""

import os
import sys
import warnings

import torch
from common import MODELS, REPO, batch, fresh, generator, normal, randomize_model, read_json, save, write_json
from methods import REPARAM, logits, write_case
from models import BERT, LENGTHS, NO_DROPOUT, ROBERTA
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from seq_models import LLAMA
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForTokenClassification,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaForTokenClassification,
    RobertaModel,
)

warnings.filterwarnings("ignore")

TOKENS = {
    "bert-tokens": (BertForTokenClassification, BertConfig(**BERT, **NO_DROPOUT, num_labels=5)),
    "roberta-tokens": (RobertaForTokenClassification, RobertaConfig(**ROBERTA, **NO_DROPOUT, num_labels=5)),
    "llama-tokens": (LlamaForTokenClassification, LlamaConfig(**LLAMA, classifier_dropout=0.0, num_labels=5)),
    "bert-answers": (BertForQuestionAnswering, BertConfig(**BERT, **NO_DROPOUT)),
    "roberta-answers": (RobertaForQuestionAnswering, RobertaConfig(**ROBERTA, **NO_DROPOUT)),
    "roberta-bare": (RobertaModel, RobertaConfig(**ROBERTA, **NO_DROPOUT)),
}

HEADS = REPARAM / "heads"
FEATURES = TaskType.FEATURE_EXTRACTION
ENCODER, DECODER = ["query", "value"], ["q_proj", "v_proj"]

CASES = {
    "states-bert": ("bert-classify", AutoModel, LoraConfig(task_type=FEATURES, r=2, target_modules=ENCODER)),
    "states-roberta": ("roberta-bare", AutoModel, LoraConfig(task_type=FEATURES, r=2, target_modules=ENCODER)),
    "states-llama": ("llama", AutoModel, LoraConfig(task_type=FEATURES, r=2, target_modules=DECODER)),
    "states-t5": ("t5", AutoModel, LoraConfig(task_type=FEATURES, r=2, target_modules=["q", "v"])),
    # PEFT saves a copy of the head, with a word table of its own.
    "masked-roberta": (
        "roberta-mlm",
        AutoModelForMaskedLM,
        LoraConfig(r=2, target_modules=ENCODER, modules_to_save=["lm_head"]),
    ),
    "masked-bert": ("bert-mlm", AutoModelForMaskedLM, LoraConfig(r=2, target_modules=ENCODER, modules_to_save=["cls"])),
    "own-bert": ("bert-mlm", AutoModelForMaskedLM, LoraConfig(r=2, target_modules=ENCODER)),
    "own-llama": ("llama-tokens", AutoModelForTokenClassification, LoraConfig(r=2, target_modules=DECODER)),
}


def write_model(name):
    cls, config = TOKENS[name]
    config._attn_implementation = "eager"
    gen = generator(name)
    model = cls(config).eval()
    randomize_model(model, gen)
    folder = fresh(MODELS / name)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    inputs = batch(gen, name.split("-")[0], LENGTHS)
    save(folder / "inputs.safetensors", inputs)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    expected = {"hidden": output.hidden_states[-1]}
    if cls is not RobertaModel:
        expected["logits"] = logits(output)
    save(folder / "expected.safetensors", expected)


def shifted(model, labels):
    return model._shift_right(labels)


@torch.no_grad()
def write_head(name):
    base, auto, config = CASES[name]
    gen = generator(name)
    model = get_peft_model(auto.from_pretrained(base, attn_implementation="eager"), config)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(normal(gen, parameter.shape, 0.3))
    folder = fresh(HEADS / name)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    settings = read_json(folder / "adapter" / "adapter_config.json")
    settings["target_modules"].sort()
    write_json(folder / "adapter" / "adapter_config.json", settings)
    inputs = load_file(MODELS / base / "inputs.safetensors")
    labels = inputs.pop("labels", None)
    model = PeftModel.from_pretrained(auto.from_pretrained(base, attn_implementation="eager"), folder / "adapter").eval()
    if base == "t5":
        inputs["decoder_input_ids"] = shifted(model.base_model.model, labels)
    output = model(**inputs)
    expected = {"logits": output.logits} if "logits" in output else {"states": output.last_hidden_state}
    if output.get("pooler_output") is not None:
        expected["pooled"] = output.pooler_output
    save(folder / "expected.safetensors", expected)
    print(name, {key: tuple(value.shape) for key, value in expected.items()}, sorted(load_file(folder / "adapter" / "adapter_model.safetensors"))[0])


if __name__ == "__main__":
    os.chdir(MODELS)
    for name in TOKENS:
        if name in sys.argv[1:] or len(sys.argv) == 1:
            write_model(name)
    for name in CASES:
        if name in sys.argv[1:] or len(sys.argv) == 1:
            write_head(name)
    for family in ("bert", "roberta", "llama"):
        targets = DECODER if family == "llama" else ENCODER
        config = LoraConfig(task_type=TaskType.TOKEN_CLS, r=3, lora_alpha=5, target_modules=targets)
        if len(sys.argv) == 1:
            write_case(REPARAM / f"lora-{family}-tokens", f"{family}-tokens", config)
    for family in ("bert", "roberta"):
        config = LoraConfig(task_type=TaskType.QUESTION_ANS, r=3, lora_alpha=5, target_modules=ENCODER)
        if f"{family}-answers" in sys.argv[1:] or len(sys.argv) == 1:
            write_case(REPARAM / f"lora-{family}-answers", f"{family}-answers", config)
