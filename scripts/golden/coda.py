"""Writes the reference cases of CoDA (Lei et al., 2023): routed layers of a T5's encoder and of a RoBERTa, written out.

Usage: python scripts/golden/coda.py   (after models.py, seq_models.py)

From section 3 of the paper; the ascent checked by reading against lucidrains/CoLT5-attention, colt5_attention/coor_descent.py.
Each sequence is run by itself, on its real tokens alone, so that nothing is padded, masked or scattered.
"""

import math

import torch
from common import REPO, normal
from derived import bert_layer, head, randomize, start, t5_bias, t5_layer, write_case
from torch import nn
from torch.nn.functional import cross_entropy, relu

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
WIDTH, REDUCTION, ITERATIONS, EPSILON = 5, 3, 20, 0.1
CASES = {"coda": "roberta-classify", "coda-t5": "t5"}
SEEDS = {"coda": 1, "coda-t5": 5}


def soft_top_k(scores, k):
    """The l of the ascent's last step, for scores of one sequence."""
    epsilon, b = 4.0, -scores
    for _ in range(ITERATIONS):
        epsilon = max(epsilon, EPSILON)
        a = epsilon * (math.log(k) - torch.logsumexp((scores + b) / epsilon, 0))
        b = -relu(scores + a)
        shares = torch.exp((scores + a + b) / epsilon)
        epsilon *= 0.7
    return shares


class Coda(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.t5 = model, not hasattr(model, "roberta")
        self.layers = model.encoder.block if self.t5 else model.roberta.encoder.layer
        d = model.config.hidden_size
        maps = lambda: nn.Sequential(nn.Linear(d, WIDTH), nn.ReLU(), nn.Linear(WIDTH, d))
        self.adapters = nn.ModuleList(maps() for _ in self.layers)
        self.routers = nn.ParameterList(torch.zeros(d) for _ in self.layers)

    def layer(self, layer, x, bias):
        """The frozen layer on some tokens."""
        if self.t5:
            return t5_layer(layer, x, self.model.config.num_heads, bias)
        return bert_layer(layer, x, self.model.config.num_attention_heads)

    def encode(self, x):
        """The layers on the embedded tokens of one sequence, `[tokens, d]`."""
        n, k, bias = len(x), math.ceil(len(x) / REDUCTION), None
        if self.t5:
            bias = t5_bias(self.model.encoder, n)
        routed = []
        for layer, router, adapter in zip(self.layers, self.routers, self.adapters):
            read = layer.layer[0].layer_norm(x) if self.t5 else x
            scores = read @ router
            shares = soft_top_k(scores, k) if k < n else torch.ones_like(scores)
            order = scores.detach().argsort(descending=True)
            chosen = order[:k].sort().values
            if k < n:
                self.margin = min(self.margin, (scores[order[k - 1]] - scores[order[k]]).item())
            update = self.layer(layer, x[chosen], bias[:, chosen][:, :, chosen] if self.t5 else None) - x[chosen]
            x = x + adapter(read)
            x = x.index_add(0, chosen, update * shares[chosen].unsqueeze(1))
            routed.append(torch.zeros(n).index_fill(0, chosen, 1.0))
        return x, torch.stack(routed)

    def forward(self, inputs):
        ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(1)
        self.margin = math.inf
        self.routed = torch.zeros(len(self.layers), *ids.shape)
        logits, losses = [], []
        for row, length in enumerate(lengths):
            tokens, label = ids[row : row + 1, :length], inputs["labels"][row : row + 1]
            embedded = self.model.shared(tokens) if self.t5 else self.model.roberta.embeddings(tokens)
            x, self.routed[:, row, :length] = self.encode(embedded[0])
            if self.t5:
                x = self.model.encoder.final_layer_norm(x)[None]
                shifted = self.model._shift_right(label)
                states = self.model.decoder(input_ids=shifted, encoder_hidden_states=x).last_hidden_state
                one = self.model.lm_head(states * self.model.config.d_model**-0.5)
                losses.append(cross_entropy(one[0], label[0], ignore_index=-100, reduction="sum"))
            else:
                one = self.model.classifier(x[None])
                losses.append(cross_entropy(one, label))
            logits.append(one)
        return torch.cat(logits), torch.stack(losses).sum() / (inputs["labels"] != -100).sum()

    def watched(self):
        assert self.margin > 1e-3, f"two scores {self.margin} apart at the edge of the choice"
        return self.routed

    def tensors(self):
        named = {}
        for layer, (router, adapter) in enumerate(zip(self.routers, self.adapters)):
            path = f"encoder.block.{layer}.layer.1.DenseReluDense.wo" if self.t5 else f"roberta.encoder.layer.{layer}.output"
            path = f"base_model.model.{path}.adapter_"
            named[path + "router"] = router
            for map_, name in [(adapter[0], "down"), (adapter[2], "up")]:
                named |= {f"{path}{name}.weight": map_.weight, f"{path}{name}.bias": map_.bias}
        return named | head(self.model)


def make(name):
    gen, inputs, model = start(name, CASES[name], SEEDS[name])
    run = Coda(model)
    randomize(run.tensors(), gen)
    with torch.no_grad():
        for router in run.routers:
            router.copy_(normal(gen, router.shape, 0.1))
    settings = {"peft_type": "CODA", "bottleneck": WIDTH, "reduction": REDUCTION}
    return run, inputs, settings | {"iterations": ITERATIONS, "epsilon": EPSILON}, {}


if __name__ == "__main__":
    for case, base in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
