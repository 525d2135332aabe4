"""Writes the tiny random models, their inputs and their expected outputs.

Usage: python scripts/golden/models.py
"""

import shutil

import torch
from common import MODELS, batch, fresh, generator, normal, randomize_model, save
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

LENGTHS = [12, 9, 5, 2]

SIZES = dict(
    vocab_size=97,
    hidden_size=24,
    num_attention_heads=3,
    num_hidden_layers=2,
    intermediate_size=40,
    max_position_embeddings=40,
    hidden_act="gelu",
)
ROBERTA = dict(SIZES, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2)
BERT = dict(SIZES, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=0)
# The classifiers are also the models the methods are trained on, which must be free of randomness.
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)

CASES = {
    "roberta-classify": (
        "roberta",
        RobertaForSequenceClassification,
        RobertaConfig(**dict(ROBERTA, num_hidden_layers=3), **NO_DROPOUT, num_labels=3),
    ),
    "roberta-regress": ("roberta", RobertaForSequenceClassification, RobertaConfig(**ROBERTA, **NO_DROPOUT, num_labels=1)),
    "roberta-mlm": ("roberta", RobertaForMaskedLM, RobertaConfig(**ROBERTA)),
    "bert-classify": ("bert", BertForSequenceClassification, BertConfig(**BERT, **NO_DROPOUT, num_labels=2)),
    "bert-mlm": ("bert", BertForMaskedLM, BertConfig(**BERT)),
    "bert-bare": ("bert", BertModel, BertConfig(**BERT)),
}


def write_model(name):
    kind, cls, config = CASES[name]
    config._attn_implementation = "eager"
    gen = generator(name)
    model = cls(config).eval()
    randomize_model(model, gen)
    folder = fresh(MODELS / name)
    model.save_pretrained(folder)
    inputs = batch(gen, kind, LENGTHS)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    expected = {"hidden": output.hidden_states[-1]}
    if cls is not BertModel:
        expected["logits"] = output.logits
    save(folder / "inputs.safetensors", inputs)
    save(folder / "expected.safetensors", expected)

    again = cls.from_pretrained(folder).eval()  # default attention kernel
    with torch.no_grad():
        other = again(**inputs)
    main = "hidden" if cls is BertModel else "logits"
    value = expected[main]
    difference = (value - (other[0])).abs().max().item()
    assert difference < 1e-4, difference
    print(f"{name}: {main} std {value.std():.2f}, max {value.abs().max():.2f}, reload/sdpa difference {difference:.1e}")


def write_sharded():
    folder = fresh(MODELS / "roberta-classify-sharded")
    model = RobertaForSequenceClassification.from_pretrained(MODELS / "roberta-classify")
    model.save_pretrained(folder, max_shard_size="30KB")


def write_bin():
    folder = fresh(MODELS / "roberta-classify-bin")
    source = MODELS / "roberta-classify"
    state = RobertaForSequenceClassification.from_pretrained(source).state_dict()  # an OrderedDict, as on the hub
    # Files of that age also carry this buffer.
    state["roberta.embeddings.position_ids"] = torch.arange(SIZES["max_position_embeddings"]).expand(1, -1)
    torch.save(state, folder / "pytorch_model.bin")
    shutil.copy(source / "config.json", folder)


def write_old_names():
    folder = fresh(MODELS / "bert-old-names")
    source = MODELS / "bert-classify"
    gen = generator("bert-old-names")
    state = {}
    for key, value in load_file(source / "model.safetensors").items():
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[key] = value
    hidden = SIZES["hidden_size"]
    state["cls.seq_relationship.weight"] = normal(gen, (2, hidden), 0.3)
    state["cls.seq_relationship.bias"] = normal(gen, (2,), 0.2)
    state["bert.embeddings.position_ids"] = torch.arange(SIZES["max_position_embeddings"]).expand(1, -1)
    save(folder / "model.safetensors", state)
    shutil.copy(source / "config.json", folder)


if __name__ == "__main__":
    for case in CASES:
        write_model(case)
    write_sharded()
    write_bin()
    write_old_names()
    # transformers itself must read the variants as the same weights.
    for variant, plain in [
        ("roberta-classify-sharded", "roberta-classify"),
        ("roberta-classify-bin", "roberta-classify"),
        ("bert-old-names", "bert-classify"),
    ]:
        cls = CASES[plain][1]
        left = cls.from_pretrained(MODELS / plain).state_dict()
        right = cls.from_pretrained(MODELS / variant).state_dict()
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left), variant
        print(f"{variant}: same weights as {plain}")
