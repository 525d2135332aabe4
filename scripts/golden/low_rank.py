"""Writes the reference cases of KronA_B, DyLoRA, Kernel-mix-lite and MOELoRA, which PEFT does not have: what their papers add, on
models of transformers.

Usage: python scripts/golden/low_rank.py [CASE ..]   (after models.py and seq_models.py)

KronA_B and DyLoRA are from the equations of their papers; Kernel-mix-lite is read against ychen-stat-ml/kernel-adapters,
nlu/petl/petl_factory.py, and MOELoRA against liuqidong07/MOELoRA-peft, src/MLoRA/peft/tuners/mmoelora.py.
"""

import sys

import torch
from common import REPO
from derived import head, randomize, start, write_case
from noise import Random
from torch import nn
from torch.nn.functional import linear

REPARAM = REPO / "peft-reparam" / "tests" / "golden"
ROBERTA, BERT, T5 = "roberta-classify", "bert-classify", "t5"
LINEARS = {
    ROBERTA: ["query", "key", "value", "output.dense", "intermediate.dense"],
    T5: ["q", "k", "v", "o", "wi", "wo"],
}


class Beside(nn.Module):
    """A model with something beside some of its modules: `beside` gives what is added to the output of one."""

    def __init__(self, model, base):
        super().__init__()
        self.model, self.base, self.own = model, base, {}

    def at(self, ends):
        """The modules whose paths end so."""
        return [(path, module) for path, module in self.model.named_modules() if path.endswith(tuple(ends))]

    def hook(self, module, beside):
        module.register_forward_hook(lambda _, inputs, output: output + beside(inputs[0]))

    def new(self, name, *shape):
        """A trained tensor of this name in files."""
        self.own[f"base_model.model.{name}"] = tensor = nn.Parameter(torch.zeros(shape))
        self.register_parameter(name.replace(".", "_"), tensor)
        return tensor

    def forward(self, inputs):
        self.tasks = inputs.get("tasks")
        output = self.model(**{name: value for name, value in inputs.items() if name != "tasks"})
        return output.logits, output.loss

    def tensors(self):
        return self.own | head(self.model)


class KronaB(Beside):
    """y = FFN(x) + s (A (x) B) x + t x, in the layout of linear maps, [out, in]."""

    def __init__(self, model, base, scale, sides, residual):
        super().__init__(model, base)
        a1, a2 = sides
        d = model.config.hidden_size
        for path, last in self.at(["DenseReluDense.wo"] if base == T5 else ["output.dense"]):
            if "attention" in path:
                continue
            w1, w2 = self.new(f"{path}.krona_w1", a2, a1), self.new(f"{path}.krona_w2", d // a2, d // a1)
            t = self.new(f"{path}.krona_residual", 1) if residual else 0.0
            network = model.get_submodule(path.rsplit(".", 1)[0] if base == T5 else path.replace("output.dense", "intermediate"))
            read = []
            network.register_forward_pre_hook(lambda _, inputs, read=read: read.__setitem__(slice(None), inputs))
            self.hook(last, lambda _, w1=w1, w2=w2, t=t, read=read: scale * linear(read[0], torch.kron(w1, w2)) + t * read[0])


class DyLora(Beside):
    """s x A B of the first b components, with s = alpha / b; frozen, with a gradient of the last alone."""

    def __init__(self, model, base, r, alpha, frozen):
        super().__init__(model, base)
        self.r, self.rank, self.drawn = r, r, False
        for path, module in self.at(["q", "v"] if base == T5 else ["query", "value"]):
            a = [self.new(f"{path}.lora_A.{i}.weight", 1, module.in_features) for i in range(r)]
            b = [self.new(f"{path}.lora_B.{i}.weight", module.out_features, 1) for i in range(r)]

            def beside(x, a=a, b=b):
                held = lambda i, tensor: tensor.detach() if frozen and self.drawn and i + 1 < self.rank else tensor
                terms = [linear(linear(x, held(i, a[i])), held(i, b[i])) for i in range(self.rank)]
                return alpha / self.rank * sum(terms)

            self.hook(module, beside)

    def before(self, step):
        self.drawn = step is not None
        self.rank = 1 + (Random(0, f"sample of step {step}").bits() * self.r >> 64) if self.drawn else self.r


class KernelMix(Beside):
    """Factors for each head, as the code's `LoRALinear` of the bases X, K and A."""

    def __init__(self, model, base, q, v, output):
        super().__init__(model, base)
        heads = model.config.num_attention_heads
        names = dict(zip("qkvo", ["q", "k", "v", "o"] if base == T5 else ["query", "key", "value", "output.dense"]))
        for path, attention in self.at(["Attention"] if base == T5 else ["attention"]):
            own = attention if base == T5 else attention.self
            inside = path if base == T5 else f"{path}.self"
            split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
            merged = lambda x: x.transpose(1, 2).flatten(2)
            width = getattr(own, names["q"]).out_features // heads
            d = getattr(own, names["q"]).in_features

            def factors(name, module, inner, rank, outer, base_of, join, path=None):
                path = f"{inside}.{name}" if path is None else path
                a, b = self.new(f"{path}.kernel_a", heads, inner, rank), self.new(f"{path}.kernel_b", heads, rank, outer)
                c = 0.0 if module.bias is None else self.new(f"{path}.kernel_bias", module.out_features)
                self.hook(module, lambda x: join(torch.einsum("bhnd,hdr,hrp->bhnp", base_of(x), a, b)) + c)

            query, key, value = (getattr(own, names[part]) for part in "qkv")
            factors(names["q"], query, d, q, width, lambda x: x[:, None].expand(-1, heads, -1, -1), merged)
            keys = lambda x, key=key: split(linear(x, key.weight, key.bias))
            factors(names["v"], value, width, v, width, keys, merged)
            if output:
                last = path + (".o" if base == T5 else ".output.dense")
                factors(names["o"], model.get_submodule(last), width, v, d, split, lambda x: x.sum(1), last)


class MoeLora(Beside):
    """s x sum_i w_i A_i B_i, with w by the task of each example."""

    def __init__(self, model, base, experts, r, alpha, tasks, width):
        super().__init__(model, base)
        table, gate = self.new("lora_task_embedding.weight", tasks, width), self.new("lora_gate.weight", experts, width)
        for path, module in self.at(LINEARS[base]):
            if isinstance(module, nn.Linear):
                a, b = self.new(f"{path}.lora_A.weight", r, module.in_features), self.new(f"{path}.lora_B.weight", module.out_features, r)

                def beside(x, a=a, b=b):
                    weights = linear(table[self.tasks[:, 0]], gate).softmax(-1)
                    terms = zip(a.chunk(experts), b.chunk(experts, 1), weights.unbind(1))
                    return alpha / r * sum(w[:, None, None] * linear(linear(x, a), b) for a, b, w in terms)

                self.hook(module, beside)


TARGETS = {"target_modules": ["query", "value"]}
CASES = {
    "krona-b": (ROBERTA, 0, "KRONA_B", KronaB, {"scale": 0.7, "sides": (4, 4), "residual": False}, {"scale": 0.7, "factor": None}),
    "krona-b-res": (ROBERTA, 0, "KRONA_B", KronaB, {"scale": 1.0, "sides": (6, 2), "residual": True}, {"factor": [6, 2], "residual": 0.0}),
    "krona-b-t5": (T5, 0, "KRONA_B", KronaB, {"scale": 0.5, "sides": (3, 8), "residual": True}, {"scale": 0.5, "factor": [3, 8], "residual": 0.0}),
    "dylora": (ROBERTA, 0, "DYLORA", DyLora, {"r": 4, "alpha": 5, "frozen": False}, {"r": 4, "lora_alpha": 5} | TARGETS),
    "dylora-frozen": (ROBERTA, 0, "DYLORA", DyLora, {"r": 4, "alpha": 5, "frozen": True}, {"r": 4, "lora_alpha": 5, "frozen": True} | TARGETS),
    "dylora-t5": (T5, 1, "DYLORA", DyLora, {"r": 3, "alpha": 5, "frozen": False}, {"r": 3, "lora_alpha": 5, "target_modules": ["q", "v"]}),
    "kernel-mix-qv": (ROBERTA, 0, "KERNEL_MIX_LITE", KernelMix, {"q": 1, "v": 2, "output": False}, {"q_rank": 1, "v_rank": 2}),
    "kernel-mix-qvo": (BERT, 0, "KERNEL_MIX_LITE", KernelMix, {"q": 2, "v": 1, "output": True}, {"q_rank": 2, "v_rank": 1, "output": True}),
    "kernel-mix-t5": (T5, 0, "KERNEL_MIX_LITE", KernelMix, {"q": 1, "v": 2, "output": True}, {"q_rank": 1, "v_rank": 2, "output": True}),
    "moelora": (
        ROBERTA,
        7,
        "MOELORA",
        MoeLora,
        {"experts": 2, "r": 4, "alpha": 5, "tasks": 3, "width": 5},
        {"r": 4, "lora_alpha": 5, "expert_num": 2, "task_num": 3, "task_embedding_dim": 5, "target_modules": LINEARS[ROBERTA]},
    ),
    "moelora-t5": (
        T5,
        0,
        "MOELORA",
        MoeLora,
        {"experts": 3, "r": 3, "alpha": 5, "tasks": 2, "width": 4},
        {"r": 3, "lora_alpha": 5, "expert_num": 3, "task_num": 2, "task_embedding_dim": 4, "target_modules": LINEARS[T5]},
    ),
}


def make(name):
    base, seed, kind, form, how, settings = CASES[name]
    gen, inputs, model = start(name, base, seed)
    run = form(model, base, **how)
    randomize(run.tensors(), gen)
    if kind == "MOELORA":
        inputs["tasks"] = torch.tensor([[1], [0], [how["tasks"] - 1], [0]])
    return run, inputs, {"peft_type": kind, "lora_dropout": 0.0} | settings if kind != "KRONA_B" else {"peft_type": kind} | settings, {}


if __name__ == "__main__":
    for case, (base, *_) in CASES.items():
        if case in sys.argv[1:] or len(sys.argv) == 1:
            write_case(REPARAM / case, lambda: make(case), base)
