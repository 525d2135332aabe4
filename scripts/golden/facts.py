"""Checks the statements the README makes about transformers and PEFT, on the golden cases.

Usage: python scripts/golden/facts.py   (after models.py and methods.py)
"""

import os

import torch
import torch.nn.functional as F
from common import MODELS
from methods import ADDITIVE, BERT, REPARAM, ROBERTA
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

TOKENS = 4  # virtual tokens of the prompt and prefix cases


class Spy:
    """Runs a case and records the inputs of the modules of interest."""

    def __init__(self, folder, base):
        model = AutoModelForSequenceClassification.from_pretrained(base, attn_implementation="eager")
        self.model = PeftModel.from_pretrained(model, folder / "adapter").eval()
        self.adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        self.inputs = load_file(folder / "inputs.safetensors")
        self.inputs.pop("labels")
        self.encoder = model.roberta if base == ROBERTA else model.bert
        self.seen = {}
        layer = self.encoder.encoder.layer[0]
        for name, module in {
            "positions": self.encoder.embeddings.position_embeddings,
            "segments": self.encoder.embeddings.token_type_embeddings,
            "words": self.encoder.embeddings.LayerNorm,
            "attention": layer.attention.self,
            "head": model.classifier if base == ROBERTA else self.encoder.pooler,
        }.items():
            module.register_forward_pre_hook(self.keep(name), with_kwargs=True)
            module.register_forward_hook(lambda m, a, out, name=name: self.seen.update({name + ".out": out}))
        with torch.no_grad():
            self.logits = self.model(**self.inputs).logits

    def keep(self, name):
        def hook(module, args, kwargs):
            self.seen[name] = (args, kwargs)

        return hook

    def ids(self, name):
        rows = self.seen[name][0][0]
        return rows.expand(self.inputs["input_ids"].shape[0], -1)


def heads(x):
    return x.view(*x.shape[:2], 3, 8).transpose(1, 2)


def roberta_positions(ids, offset):
    real = ids.ne(1).long()
    return (real.cumsum(1) + offset) * real + 1


def prompt(base):
    spy = Spy(ADDITIVE / ("prompt" if base == ROBERTA else "prompt-bert"), base)
    ids = spy.inputs["input_ids"]
    rows, width = ids.shape
    first = 2 if base == ROBERTA else 0
    expected = torch.arange(first, first + TOKENS + width).expand(rows, -1)
    assert torch.equal(spy.ids("positions"), expected)
    segments = torch.zeros(rows, TOKENS + width, dtype=torch.long)
    if base == BERT:
        segments[:, TOKENS:] = spy.inputs["token_type_ids"]
    assert torch.equal(spy.ids("segments"), segments)
    # The prompt replaces word embeddings: segment, position and LayerNorm still apply to it.
    table = spy.encoder.embeddings
    words = torch.cat([spy.adapter["prompt_embeddings"].expand(rows, -1, -1), table.word_embeddings(ids)], 1)
    words = words + table.token_type_embeddings(segments) + table.position_embeddings(expected)
    assert torch.allclose(words, spy.seen["words"][0][0], atol=1e-6)
    mask = spy.seen["attention"][1]["attention_mask"]
    allowed = torch.cat([torch.ones(rows, TOKENS, dtype=torch.bool), spy.inputs["attention_mask"].bool()], 1)
    assert torch.equal(mask == 0, allowed[:, None, None, :].expand_as(mask))
    head_input(spy, base, TOKENS + width)


def prefix(base, name):
    spy = Spy(ADDITIVE / name, base)
    ids = spy.inputs["input_ids"]
    rows, width = ids.shape
    expected = roberta_positions(ids, TOKENS) if base == ROBERTA else torch.arange(TOKENS, TOKENS + width).expand(rows, -1)
    assert torch.equal(spy.ids("positions"), expected)
    segments = spy.inputs["token_type_ids"] if base == BERT else torch.zeros_like(ids)
    assert torch.equal(spy.ids("segments"), segments)
    # The attention of layer 0 by hand.
    (hidden,), keywords = spy.seen["attention"]
    mask = keywords["attention_mask"]
    attention = spy.encoder.encoder.layer[0].attention.self
    layers = spy.adapter["prompt_embeddings"].view(TOKENS, -1, 3, 8).permute(1, 2, 0, 3)
    key = torch.cat([layers[0].expand(rows, -1, -1, -1), heads(attention.key(hidden))], 2)
    value = torch.cat([layers[1].expand(rows, -1, -1, -1), heads(attention.value(hidden))], 2)
    allowed = torch.cat([torch.ones(rows, TOKENS, dtype=torch.bool), spy.inputs["attention_mask"].bool()], 1)
    assert torch.equal(mask == 0, allowed[:, None, None, :].expand(rows, 1, width, TOKENS + width))
    scores = heads(attention.query(hidden)) @ key.transpose(2, 3) / 8**0.5
    scores = scores.masked_fill(~allowed[:, None, None, :], float("-inf"))
    output = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, width, 24)
    assert torch.allclose(output, spy.seen["attention.out"][0], atol=1e-5)
    head_input(spy, base, width)


def head_input(spy, base, width):
    """The head reads row 0 of the sequence that went through the encoder."""
    state = spy.seen["head"][0][0]
    assert state.shape[1] == width
    prefix = "base_model.classifier."
    weight = {k.removeprefix(prefix): v for k, v in spy.adapter.items() if k.startswith(prefix)}
    if base == ROBERTA:
        x = torch.tanh(F.linear(state[:, 0], weight["dense.weight"], weight["dense.bias"]))
        logits = F.linear(x, weight["out_proj.weight"], weight["out_proj.bias"])
    else:
        x = torch.tanh(spy.encoder.pooler.dense(state[:, 0]))
        logits = F.linear(x, weight["weight"], weight["bias"])
    assert torch.allclose(logits, spy.logits, atol=1e-5)


def projection():
    folder = ADDITIVE / "prefix-projection"
    w = load_file(folder / "projection.safetensors")
    x = torch.tanh(F.linear(w["embedding.weight"], w["transform.0.weight"], w["transform.0.bias"]))
    x = F.linear(x, w["transform.2.weight"], w["transform.2.bias"])
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.allclose(x, saved, atol=1e-6)


def ia3():
    model = Spy(ADDITIVE / "ia3", ROBERTA)
    layer = model.encoder.encoder.layer[0]
    x = torch.randn(2, 24)
    key = layer.attention.self.key
    scale = model.adapter["base_model.model.roberta.encoder.layer.0.attention.self.key.ia3_l"]
    assert torch.allclose(key(x), key.base_layer(x) * scale.flatten(), atol=1e-6)  # bias included
    for name, module, width in [("attention.output", layer.attention.output.dense, 24), ("output", layer.output.dense, 40)]:
        x = torch.randn(2, width)
        scale = model.adapter[f"base_model.model.roberta.encoder.layer.0.{name}.dense.ia3_l"]
        assert torch.allclose(module(x), module.base_layer(x * scale.flatten()), atol=1e-6)


def lora():
    model = Spy(REPARAM / "lora-patterns", ROBERTA)
    encoder = model.encoder.encoder
    expected = {  # module: (rank, alpha)
        "layer.0.attention.self.query": (2, 3),
        "layer.1.attention.self.query": (3, 3),
        "layer.1.attention.self.value": (3, 6),
        "layer.2.attention.self.value": (1, 6),
        "layer.0.intermediate.dense": (4, 6),
        "layer.1.output.dense": (3, 7),
        "layer.1.attention.output.dense": (3, 6),
        "layer.2.output.dense": (3, 6),
    }
    for name, (rank, alpha) in expected.items():
        module = encoder.get_submodule(name)
        assert module.r["default"] == rank, name
        assert abs(module.scaling["default"] - alpha / rank**0.5) < 1e-9, name
        a, b = (model.adapter[f"base_model.model.roberta.encoder.{name}.lora_{x}.weight"] for x in "AB")
        x = torch.randn(2, a.shape[1])
        by_hand = F.linear(x, module.base_layer.weight + alpha / rank**0.5 * b @ a, module.base_layer.bias)
        assert torch.allclose(module(x), by_hand, atol=1e-5), name
        bias = model.adapter[f"base_model.model.roberta.encoder.{name}.base_layer.bias"]
        assert torch.equal(bias, module.base_layer.bias), name


@torch.no_grad()
def main():
    os.chdir(MODELS)
    prompt(ROBERTA)
    prompt(BERT)
    prefix(ROBERTA, "prefix")
    prefix(ROBERTA, "prefix-projection")
    prefix(BERT, "prefix-bert")
    projection()
    ia3()
    lora()
    print("all facts hold")


if __name__ == "__main__":
    main()
