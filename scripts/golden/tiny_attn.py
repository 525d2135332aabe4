"""Writes the reference cases of Tiny-Attn adapters (Zhao et al., 2022): torch's multi-head attention behind self-attentions.

Usage: python scripts/golden/tiny_attn.py   (after models.py, seq_models.py)

Written out from cindermond/tiny-attn, rewriter/model/tiny_attn.py (`TinyAttention`), put where rewriter/model/roberta_bl.py has it in
the structure m0. The attention is `torch.nn.MultiheadAttention`, as there.
"""

import torch
from common import REPO
from derived import head, randomize, start, write_case
from torch import nn

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
# Width and heads.
CASES = {
    "tiny-attn": ("roberta-classify", 1, 1),
    "tiny-attn-heads-bert": ("bert-classify", 6, 2),
    "tiny-attn-t5": ("t5", 3, 3),
}


class TinyAttention(nn.Module):
    def __init__(self, d, width, heads, eps):
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(d, eps)
        self.linear1 = nn.Linear(d, 3 * width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear2 = nn.Linear(width, d)

    def forward(self, states, padding, causal):
        query, key, value = self.linear1(self.norm(states)).split(self.width, 2)
        unseen = torch.ones(states.shape[1], states.shape[1], dtype=torch.bool).triu(1) if causal else None
        mixed, _ = self.attention(query, key, value, key_padding_mask=padding, attn_mask=unseen, need_weights=False)
        return states + self.linear2(mixed)


class TinyAttn(nn.Module):
    # The bias of a key.
    noisy = ("linear1.bias", "in_proj_bias")

    def __init__(self, model, width, heads):
        super().__init__()
        self.model, self.adapters = model, nn.ModuleDict()
        if hasattr(model, "shared"):
            stacks = {"encoder": model.encoder.block, "decoder": model.decoder.block}
            eps, prefix = model.config.layer_norm_epsilon, ""
        else:
            stacks = {"encoder": getattr(model, model.config.model_type).encoder.layer}
            eps, prefix = model.config.layer_norm_eps, f"{model.config.model_type}."
        for stack, layers in stacks.items():
            for i, layer in enumerate(layers):
                tiny = TinyAttention(model.config.hidden_size, width, heads, eps)
                self.adapters[f"base_model.model.{prefix}{stack}.layer.{i}".replace(".", "/")] = tiny
                attention = layer.layer[0] if hasattr(layer, "layer") else layer.attention
                attention.register_forward_hook(self.hook(tiny, stack == "decoder"))

    def hook(self, tiny, causal):
        return lambda _, args, output: (tiny(output[0], None if causal else self.padding, causal), *output[1:])

    def forward(self, inputs):
        self.padding = inputs["attention_mask"] == 0
        output = self.model(**inputs)
        return output.logits, output.loss

    def tensors(self):
        named = {
            f"{path.replace('/', '.')}.tiny_attn.{name}": parameter
            for path, tiny in self.adapters.items()
            for name, parameter in tiny.named_parameters()
        }
        return named | head(self.model)


def make(name):
    base, width, heads = CASES[name]
    gen, inputs, model = start(name, base, 1)
    run = TinyAttn(model, width, heads)
    randomize(run.tensors(), gen)
    return run, inputs, {"peft_type": "TINY_ATTN_ADAPTER", "attention_embd": width, "attention_head": heads}, {}


if __name__ == "__main__":
    for case, (base, _, _) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
