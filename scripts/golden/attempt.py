"""Writes the reference cases of ATTEMPT (Asai et al., 2022): a prompt for each sequence, mixed from several, around transformers.

Usage: python scripts/golden/attempt.py   (after models.py, seq_models.py)

Written out from AkariAsai/ATTEMPT, attempt/third_party/models/t5/modeling_t5.py (`T5Stack.forward`, the method "sub"), but that each
sequence is pooled over its real tokens alone.
"""

import torch
from common import REPO, normal, save
from derived import head, randomize, start, write_case
from torch import nn
from torch.nn.functional import silu, softmax

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
TOKENS, WIDTH, SOURCES, TEMPERATURE = 4, 6, 3, 3.0
CASES = {"attempt": "roberta-classify", "attempt-t5": "t5"}
SEEDS = {"attempt": 3, "attempt-t5": 1}


class Attempt(nn.Module):
    def __init__(self, model, sources):
        super().__init__()
        d = model.config.hidden_size
        self.model, self.sources = model, nn.Parameter(sources)
        self.prompt_embeddings = nn.Parameter(torch.zeros(TOKENS, d))
        self.attn_W_down, self.attn_W_up = nn.Linear(d, WIDTH, bias=False), nn.Linear(WIDTH, d, bias=False)
        self.layer_norm = nn.LayerNorm(d)

    def mixed(self, words):
        """The prompt of one sequence, `[tokens, d]`."""
        query = self.layer_norm(self.attn_W_up(silu(self.attn_W_down(words.amax(0)))))
        prompts = torch.cat([self.sources, self.prompt_embeddings[None]])
        weights = softmax(prompts.amax(1) @ query / TEMPERATURE, 0)
        return self.prompt_embeddings + torch.einsum("j,jld->ld", weights, prompts)

    def forward(self, inputs):
        words, mask = self.model.get_input_embeddings()(inputs["input_ids"]), inputs["attention_mask"]
        prompts = torch.stack([self.mixed(row[: real.sum()]) for row, real in zip(words, mask)])
        mask = torch.cat([torch.ones(len(mask), TOKENS, dtype=mask.dtype), mask], 1)
        words = torch.cat([prompts, words], 1)
        output = self.model(inputs_embeds=words, attention_mask=mask, labels=inputs["labels"])
        return output.logits, output.loss

    def tensors(self):
        named = {"prompt_embeddings": self.prompt_embeddings, "attn_W_down.weight": self.attn_W_down.weight}
        named |= {"attn_W_up.weight": self.attn_W_up.weight}
        named |= {f"layer_norm.{leaf}": parameter for leaf, parameter in self.layer_norm.named_parameters()}
        heads = {name.replace("base_model.model.", "base_model."): tensor for name, tensor in head(self.model).items()}
        return named | heads


def make(name):
    gen, inputs, model = start(name, CASES[name], SEEDS[name])
    run = Attempt(model, normal(gen, (SOURCES, TOKENS, model.config.hidden_size), 0.5))
    randomize(run.tensors(), gen)
    settings = {"peft_type": "ATTEMPT", "num_virtual_tokens": TOKENS, "attention_width": WIDTH}
    return run, inputs, settings | {"temperature": TEMPERATURE, "num_sources": SOURCES}, {}


if __name__ == "__main__":
    for case, base in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
        # The sources are in the file too, though nothing trains them.
        run = make(case)[0]
        tensors = run.tensors() | {"mul_prefix_emb": run.sources}
        save(ADDITIVE / case / "adapter" / "adapter_model.safetensors", tensors)
