"""Writes the reference cases of AttentionFusion (Cao et al., 2022): an attention over the layers' states, around transformers.

Usage: python scripts/golden/attention_fusion.py   (after models.py, seq_models.py)

From the paper's equation, token by token; the authors' code is not public.
"""

import torch
from common import REPO
from derived import head, randomize, start, write_case
from torch import nn
from torch.nn.functional import cross_entropy

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
# The states that are fused, 0 being the embeddings; all but those if none are named.
CASES = {
    "attention-fusion": ("roberta-classify", None),
    "attention-fusion-bert": ("bert-classify", [0, 2]),
    "attention-fusion-t5": ("t5", None),
}


class AttentionFusion(nn.Module):
    def __init__(self, model, layers):
        super().__init__()
        self.model, self.layers = model, layers
        self.query = nn.Parameter(torch.zeros(model.config.hidden_size))

    def fused(self, states):
        """Of the states of a model, `[batch, tokens, d]` each."""
        states = [states[j] for j in self.layers or range(1, len(states))]
        fused = torch.empty_like(states[0])
        for row in range(fused.shape[0]):
            for token in range(fused.shape[1]):
                v = torch.stack([state[row, token] for state in states])
                a = (v @ self.query).exp()
                fused[row, token] = (a / a.sum()) @ v
        return fused

    def forward(self, inputs):
        labels = inputs["labels"]
        if hasattr(self.model, "shared"):
            states = self.model(**inputs, output_hidden_states=True).decoder_hidden_states
            # The last one is normalized already.
            norm = self.model.decoder.final_layer_norm
            fused = self.fused([norm(state) for state in states[:-1]] + [states[-1]])
            logits = self.model.lm_head(fused * self.model.config.d_model**-0.5)
            return logits, cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        model = getattr(self.model, self.model.config.model_type)
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        fused = self.fused(model(**inputs, output_hidden_states=True).hidden_states)
        logits = self.model.classifier(model.pooler(fused) if model.pooler else fused)
        return logits, cross_entropy(logits, labels)

    def tensors(self):
        return {"base_model.model.attention_fusion.query": self.query} | head(self.model)


def make(name):
    base, layers = CASES[name]
    gen, inputs, model = start(name, base, 1)
    run = AttentionFusion(model, layers)
    randomize(run.tensors(), gen)
    return run, inputs, {"peft_type": "ATTENTION_FUSION", "layers": layers}, {}


if __name__ == "__main__":
    for case, (base, _) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
