"""Writes the reference cases of WARP (Hambardzumyan et al., 2021) around transformers' models for masked words.

Usage: python scripts/golden/warp.py   (after models.py)

From the paper's equations: rows of slots and of the mask are put between those of the text, sequence by sequence, and the state of
the mask goes through the model's own transform to the vectors of the classes.
"""

import os

import torch
from common import MODELS, REPO, batch, generator, normal, save
from derived import randomize, write_case
from methods import LABELS, LENGTHS
from torch import nn
from transformers import AutoModelForMaskedLM

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
MASK = 7
# The template, and how many slots stand in its places.
CASES = {
    "warp": ("roberta-mlm", "2 {text} 1 <mask> 2 {pair} 1", (2, (1, 2), 1)),
    "warp-bert": ("bert-mlm", "1 {text} <mask> 2 {pair}", (1, (0, 2), 0)),
}
CLASSES = {"warp": 3, "warp-bert": 2}
SEEDS = {"warp": 1, "warp-bert": 1}


class Warp(nn.Module):
    def __init__(self, model, slots, classes, gen):
        super().__init__()
        d = model.config.hidden_size
        self.model, self.slots = model, slots
        front, (before, behind), end = slots
        self.prompts = nn.Parameter(normal(gen, (front + before + behind + end, d), 0.3))
        self.out = nn.Linear(d, classes)
        bert = hasattr(model, "bert")
        self.body = model.bert if bert else model.roberta
        transform = model.cls.predictions.transform if bert else model.lm_head
        self.dense, self.norm = transform.dense, transform.LayerNorm if bert else transform.layer_norm

    def state(self, ids, types):
        """What the transform makes of the mask's final state in one sequence."""
        table = self.model.get_input_embeddings()
        last = ids[-1].item()
        cut = next(i for i in range(1, len(ids)) if ids[i].item() == last)
        front, (before, behind), end = self.slots
        parts = self.prompts.split([front, before, behind, end])
        words, mask = table(ids), table(torch.tensor([MASK]))
        pieces = [words[:1], parts[0], words[1:cut], parts[1], mask, parts[2], words[cut:-1], parts[3], words[-1:]]
        kinds = [types[:1], 0, types[1:cut], 0, 0, 0, types[cut:-1], 0, types[-1:]]
        kinds = [torch.zeros(len(p), dtype=torch.long) if isinstance(k, int) else k for p, k in zip(pieces, kinds)]
        place = sum(len(piece) for piece in pieces[:4])
        states = self.body(inputs_embeds=torch.cat(pieces)[None], token_type_ids=torch.cat(kinds)[None])[0]
        return self.norm(nn.functional.gelu(self.dense(states[0, place])))

    def forward(self, inputs):
        types = inputs.get("token_type_ids", torch.zeros_like(inputs["input_ids"]))
        rows = zip(inputs["input_ids"], types, inputs["attention_mask"].sum(1))
        logits = torch.stack([self.out(self.state(ids[:n], types[:n])) for ids, types, n in rows])
        return logits, nn.functional.cross_entropy(logits, inputs["labels"])

    def tensors(self):
        prefix = "base_model.model."
        out = {f"{prefix}verbalizer.out.{leaf}": tensor for leaf, tensor in self.out.named_parameters()}
        return {f"{prefix}prompt_embeddings": self.prompts} | out

    def frozen(self):
        parts = {"dense": self.dense, "layer_norm": self.norm}
        named = ((part, leaf, t) for part, module in parts.items() for leaf, t in module.named_parameters())
        return {f"base_model.model.verbalizer.{part}.{leaf}": tensor for part, leaf, tensor in named}


def make(name):
    base, template, slots = CASES[name]
    os.chdir(MODELS)
    gen = generator(f"{name}/{SEEDS[name]}")
    inputs = batch(gen, base.split("-")[0], LENGTHS)
    if base == "roberta-mlm":
        for row in (0, 2):  # of two texts; the second sequence of the others has the mask's word in it
            inputs["input_ids"][row, LENGTHS[row] // 2] = 2
        inputs["input_ids"][1, 3] = MASK
    inputs["labels"] = torch.tensor(LABELS["roberta-classify" if CLASSES[name] == 3 else "bert-classify"])
    model = AutoModelForMaskedLM.from_pretrained(base, attn_implementation="eager").eval()
    run = Warp(model, slots, CLASSES[name], gen).eval()
    randomize(run.tensors(), gen)
    return run, inputs, {"peft_type": "WARP", "template": template, "mask_token_id": MASK}, {}


if __name__ == "__main__":
    for case, (base, *_) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
        # The transform is in the file too, though nothing trains it.
        run = make(case)[0]
        save(ADDITIVE / case / "adapter" / "adapter_model.safetensors", run.tensors() | run.frozen())
