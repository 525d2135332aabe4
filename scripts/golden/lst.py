"""Writes the reference cases of ladder side-tuning (Sung et al., 2022): side layers beside a BERT and a T5, written out.

Usage: python scripts/golden/lst.py   (after models.py, seq_models.py)

From section 3 of the paper; checked by reading against ylsung/Ladder-Side-Tuning: seq2seq/third_party/models/t5/modeling_side_t5.py
and ../bart/modeling_bart_encoder.py (the ladder), seq2seq/pruning/pruning_methods.py and fisher.py (the start of the side layers).
Each sequence is run by itself, on its real tokens alone, and the states of the backbone are detached.
"""

import copy

import torch
from common import REPO, normal
from derived import bert_layer, head, randomize, start, t5_bias, t5_layer, write_case
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertModel, T5ForConditionalGeneration

ADDITIVE = REPO / "peft-additive" / "tests" / "golden"
REDUCTION, TEMPERATURE = 2, 0.1
# The layers of encoder and decoder that have a side layer; None is all.
CASES = {"lst-bert": ("bert-classify", None, None), "lst-t5": ("t5", [1], [0, 2])}
SEEDS = {"lst-bert": 0, "lst-t5": 0}


def smaller(model):
    """A model of the same kind, all widths divided."""
    config = copy.deepcopy(model.config)
    names = ["hidden_size", "intermediate_size"] if hasattr(model, "bert") else ["d_model", "d_kv", "d_ff"]
    for name in names:
        setattr(config, name, getattr(config, name) // REDUCTION)
    return BertModel(config, add_pooling_layer=False) if hasattr(model, "bert") else T5ForConditionalGeneration(config)


class Ladder(nn.Module):
    """D_0, and D_i and a_i of the layers that have a side layer."""

    def __init__(self, wide, narrow, layers):
        super().__init__()
        self.side_first_downsample = nn.Linear(wide, narrow)
        self.side_downsamples = nn.ModuleDict({str(i): nn.Linear(wide, narrow) for i in layers})
        self.side_gate_params = nn.ParameterDict({str(i): nn.Parameter(torch.zeros(1)) for i in layers})

    def climb(self, states, layer):
        """The side states behind the last layer, from the backbone's [h_0, h_1, ..]."""
        s = self.side_first_downsample(states[0])
        for i, h in enumerate(states[1:]):
            if str(i) in self.side_downsamples:
                g = torch.sigmoid(self.side_gate_params[str(i)] / TEMPERATURE)
                s = layer(i, g * s + (1 - g) * self.side_downsamples[str(i)](h))
        return s


class Lst(nn.Module):
    def __init__(self, model, encoder_layers, decoder_layers):
        super().__init__()
        self.model, self.side, self.t5 = model, smaller(model), not hasattr(model, "bert")
        wide = model.config.hidden_size
        narrow = self.side.config.hidden_size
        self.encoder = Ladder(wide, narrow, encoder_layers or range(model.config.num_hidden_layers))
        if self.t5:
            self.decoder = Ladder(wide, narrow, decoder_layers or range(model.config.num_decoder_layers))
        self.up = nn.Linear(narrow, wide)

    def of_bert(self, inputs, row, length):
        model, heads = self.model.bert, self.model.config.num_attention_heads
        tokens = {k: inputs[k][row : row + 1, :length] for k in ("input_ids", "token_type_ids")}
        states = [model.embeddings(**tokens)[0].detach()]
        for layer in model.encoder.layer:
            states.append(bert_layer(layer, states[-1], heads).detach())
        s = self.encoder.climb(states, lambda i, x: bert_layer(self.side.encoder.layer[i], x, heads))
        return self.model.classifier(model.pooler(self.up(s)[None]))

    def of_t5(self, inputs, row, length):
        heads, kept = self.model.config.num_heads, {}
        ids = {"encoder": inputs["input_ids"][row, :length]}
        ids["decoder"] = self.model._shift_right(inputs["labels"][row : row + 1])[0]
        for name, ladder in [("encoder", self.encoder), ("decoder", self.decoder)]:
            stack, side = getattr(self.model, name), getattr(self.side, name)
            encoded, beside = kept.get("encoder", (None, None))
            states = [self.model.shared(ids[name]).detach()]
            bias, own = t5_bias(stack, len(ids[name])), t5_bias(side, len(ids[name]))
            for block in stack.block:
                states.append(t5_layer(block, states[-1], heads, bias, encoded).detach())
            s = ladder.climb(states, lambda i, x: t5_layer(side.block[i], x, heads, own, beside))
            kept[name] = stack.final_layer_norm(states[-1]).detach(), side.final_layer_norm(s)
        y = self.up(kept["decoder"][1])
        return self.model.lm_head(y * self.model.config.d_model**-0.5)[None]

    def forward(self, inputs):
        logits, losses = [], []
        for row, length in enumerate(inputs["attention_mask"].sum(1)):
            one = (self.of_t5 if self.t5 else self.of_bert)(inputs, row, length)
            label = inputs["labels"][row].view(-1)
            logits.append(one)
            losses.append(cross_entropy(one.flatten(0, -2), label, ignore_index=-100, reduction="sum"))
        return torch.cat(logits), torch.stack(losses).sum() / (inputs["labels"] != -100).sum()

    def side_tensors(self):
        """What is trained of the side layers, by the names of the model."""
        kept = {"encoder": self.encoder.side_downsamples, "decoder": getattr(self, "decoder", self.encoder).side_downsamples}
        named = {}
        for name, parameter in self.side.named_parameters():
            stack, _, layer, *_ = name.split(".") + [""] * 3
            whole = "final_layer_norm" in name or "relative_attention_bias" in name
            if stack in kept and (whole or layer in kept[stack]):
                named[name if self.t5 else f"bert.{name}"] = parameter
        return named

    def tensors(self):
        named = {f"base_model.model.side.{name}": parameter for name, parameter in self.side_tensors().items()}
        for stack in ["encoder", "decoder"] if self.t5 else ["encoder"]:
            for name, parameter in getattr(self, stack).named_parameters():
                named[f"base_model.model.{stack}.{name}"] = parameter
        named |= {f"base_model.model.side_final_upsample.{name}": p for name, p in self.up.named_parameters()}
        return named | head(self.model)


def fisher(model, inputs):
    """The squared gradients of all parameters, of each sequence's own loss, summed."""
    model.requires_grad_(True)
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for row, length in enumerate(inputs["attention_mask"].sum(1)):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        one |= {name: one[name][:, :length] for name in one if name != "labels"}
        model.zero_grad()
        model(**one).loss.backward()
        for name, parameter in model.named_parameters():
            squares[name] += parameter.grad**2
    return squares


def largest(importance, kept):
    """The rows with the largest sums, in their order."""
    sums = importance.sum(1)
    order = sums.argsort(descending=True)
    edge = (sums[order[kept - 1]] - sums[order[kept]]) / sums[order[kept - 1]] if kept < len(sums) else 1.0
    assert edge > 1e-4, f"two units {edge:.1e} apart at the edge of the choice"
    return order[:kept].sort().values


def pruned(model, squares):
    """The tensors of the side layers at their start: units along the order of the forward, residuals ignored."""
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    start, t5 = {}, not hasattr(model, "bert")
    words = "shared.weight" if t5 else "bert.embeddings.word_embeddings.weight"
    units = largest(squares[words].T, values[words].shape[1] // REDUCTION)

    def maps(*names):
        nonlocal units
        importance = torch.ones(())
        for name in names:
            importance = importance * squares[f"{name}.weight"][:, units]
        rows = largest(importance, importance.shape[0] // REDUCTION)
        for name in names:
            start[f"{name}.weight"] = values[f"{name}.weight"][rows][:, units]
            if f"{name}.bias" in values:
                start[f"{name}.bias"] = values[f"{name}.bias"][rows]
        units = rows

    def norm(name):
        start.update({n: values[n][units] for n in (f"{name}.weight", f"{name}.bias") if n in values})

    if not t5:
        for i in range(model.config.num_hidden_layers):
            at = f"bert.encoder.layer.{i}."
            maps(*(f"{at}attention.self.{name}" for name in ("query", "key", "value")))
            maps(f"{at}attention.output.dense")
            norm(f"{at}attention.output.LayerNorm")
            maps(f"{at}intermediate.dense")
            maps(f"{at}output.dense")
            norm(f"{at}output.LayerNorm")
        return start
    for stack, count in [("encoder", model.config.num_layers), ("decoder", model.config.num_decoder_layers)]:
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        start[table] = values[table]
        for i in range(count):
            attentions = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
            for j, kind in enumerate([*attentions, "DenseReluDense"]):
                at = f"{stack}.block.{i}.layer.{j}."
                norm(f"{at}layer_norm")
                if kind == "DenseReluDense":
                    maps(f"{at}{kind}.wi")
                    maps(f"{at}{kind}.wo")
                else:
                    maps(*(f"{at}{kind}.{name}" for name in "qkv"))
                    maps(f"{at}{kind}.o")
        norm(f"{stack}.final_layer_norm")
    return start


def make(name):
    base, encoder_layers, decoder_layers = CASES[name]
    gen, inputs, model = start(name, base, SEEDS[name])
    run = Lst(model, encoder_layers, decoder_layers)
    trained = run.tensors()
    # The start is taken with the head that is trained, and then all that is trained is random.
    randomize(head(model), gen)
    double = copy.deepcopy(model).double()
    begun = pruned(double, fisher(double, inputs))
    randomize({name: parameter for name, parameter in trained.items() if "classifier" not in name}, gen)
    with torch.no_grad():
        for name_, parameter in trained.items():
            if "side_gate_params" in name_:
                parameter.copy_(normal(gen, parameter.shape, 0.05))
    beside = {f"start.base_model.model.side.{name_}": begun[name_] for name_ in run.side_tensors()}
    settings = {"peft_type": "LADDER_SIDE_TUNING", "task_reduction_factor": REDUCTION, "gate_temperature": TEMPERATURE}
    settings |= {"encoder_side_layers": encoder_layers, "decoder_side_layers": decoder_layers}
    return run, inputs, settings | {"samples_for_fisher": len(inputs["input_ids"])}, beside


if __name__ == "__main__":
    for case, (base, _, _) in CASES.items():
        write_case(ADDITIVE / case, lambda: make(case), base)
