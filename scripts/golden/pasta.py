"""Writes the reference cases of PASTA (Yang et al., 2022): vectors added to special tokens in front of layers, around transformers.

Usage: python scripts/golden/pasta.py   (after models.py, seq_models.py)

From section 2 of the paper; checked by reading against luka-group/PASTA, PASTA_modeling.py (`BertPastaEmbeddings`, `BertPastaLayer`).
"""

import torch
from common import REPO
from derived import head, randomize, start, write_case
from torch import nn

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
# The ids of special tokens, and how many of a sequence get a vector.
CASES = {
    "pasta": ("roberta-classify", [0, 2], 2),
    "pasta-bert": ("bert-classify", [2, 3], 3),
    "pasta-t5": ("t5", list(range(1, 97, 4)), 2),
}


class Pasta(nn.Module):
    def __init__(self, model, special, count):
        super().__init__()
        self.model, self.special, self.count = model, special, count
        encoder = model.encoder if hasattr(model, "shared") else getattr(model, model.config.model_type).encoder
        layers = encoder.block if hasattr(encoder, "block") else encoder.layer
        self.vectors = nn.ParameterList(torch.zeros(count, model.config.hidden_size) for _ in layers)
        for layer, vectors in zip(layers, self.vectors):
            layer.register_forward_pre_hook(lambda _, args, vectors=vectors: (self.marked(args[0], vectors), *args[1:]))

    def marked(self, states, vectors):
        states = states.clone()
        for row, tokens in enumerate(self.places):
            for j, token in enumerate(tokens):
                states[row, token] += vectors[j]
        return states

    def forward(self, inputs):
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist())
        special = [[i for i in range(len(ids)) if mask[i] and ids[i] in self.special] for ids, mask in rows]
        self.places = [tokens[: self.count] for tokens in special]
        output = self.model(**inputs)
        return output.logits, output.loss

    def tensors(self):
        prefix = "" if hasattr(self.model, "shared") else f"{self.model.config.model_type}."
        path = f"base_model.model.{prefix}encoder.layer"
        named = {f"{path}.{i}.special_token_embedding.weight": vectors for i, vectors in enumerate(self.vectors)}
        return named | head(self.model)


def make(name):
    base, special, count = CASES[name]
    gen, inputs, model = start(name, base, 1)
    run = Pasta(model, special, count)
    randomize(run.tensors(), gen)
    return run, inputs, {"peft_type": "PASTA", "special_tokens": special, "num_special_tokens": count}, {}


if __name__ == "__main__":
    for case, (base, _, _) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
