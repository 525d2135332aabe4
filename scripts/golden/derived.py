"""What the derivations of methods without a reference package share: a run in float64, and the files of its case.

A derivation is a module around a model of transformers with `forward(inputs)`, which gives logits and loss, and `tensors()`, what
is trained by its name in our files. It may have `before(step)`, which is called in front of each step, `watched()`, what it tells of its
last forward, and `noisy`, the ends of names of tensors whose path is rounding noise.
"""

import math
import os

import torch
from common import MODELS, batch, fresh, generator, in_float64, normal, save, write_json
from methods import LABEL_LENGTHS, LABELS, LENGTHS, STEPS, adamw, base_model
from seq_models import seq_batch
from torch.nn.functional import gelu, relu, softmax


def start(name, base, seed):
    """The random numbers of a case, its batch and its model."""
    os.chdir(MODELS)
    gen = generator(f"{name}/{seed}")
    if base == "t5":
        inputs = seq_batch(gen, "t5", LENGTHS, LABEL_LENGTHS)
    else:
        inputs = batch(gen, base.split("-")[0], LENGTHS) | {"labels": torch.tensor(LABELS[base])}
    return gen, inputs, base_model(base, attn_implementation="eager").eval()


def head(model):
    """The trained tensors of a classifier, by their names in files; a language model's head is the frozen one."""
    named = getattr(model, "classifier", torch.nn.Module()).named_parameters()
    return {f"base_model.model.classifier.{name}": parameter for name, parameter in named}


@torch.no_grad()
def randomize(tensors, gen, std=0.3):
    for name, parameter in tensors.items():
        gain = parameter.dim() == 1 and name.lower().endswith("norm.weight")
        parameter.copy_(normal(gen, parameter.shape, 0.2 if parameter.dim() == 1 else std, mean=1.0 if gain else 0.0))


def attention(query, key, value, heads, bias=None):
    """Of `[tokens, width]`; without a bias scores are divided by the root of a head's width, with one they are not."""
    split = lambda x: x.view(len(x), heads, -1).transpose(0, 1)
    query, key, value = split(query), split(key), split(value)
    scores = query @ key.transpose(1, 2)
    scores = scores / math.sqrt(query.shape[2]) if bias is None else scores + bias
    return (softmax(scores, 2) @ value).transpose(0, 1).flatten(1)


def bert_layer(layer, x, heads):
    """A layer of BERT or RoBERTa on the tokens of one sequence, `[tokens, width]`."""
    own, after = layer.attention.self, layer.attention.output
    x = after.LayerNorm(x + after.dense(attention(own.query(x), own.key(x), own.value(x), heads)))
    return layer.output.LayerNorm(x + layer.output.dense(gelu(layer.intermediate.dense(x))))


def t5_layer(block, x, heads, bias, encoded=None):
    """A layer of T5 on the tokens of one sequence; in a decoder also on the states of the encoder."""
    own, ff = block.layer[0].SelfAttention, block.layer[-1]
    n = block.layer[0].layer_norm(x)
    x = x + own.o(attention(own.q(n), own.k(n), own.v(n), heads, bias))
    if encoded is not None:
        cross, n = block.layer[1].EncDecAttention, block.layer[1].layer_norm(x)
        x = x + cross.o(attention(cross.q(n), cross.k(encoded), cross.v(encoded), heads, 0.0))
    return x + ff.DenseReluDense.wo(relu(ff.DenseReluDense.wi(ff.layer_norm(x))))


def t5_bias(stack, n):
    """What a stack adds to the scores of its n tokens; a decoder does not look ahead."""
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(n, n)[0]
    return bias + torch.full((n, n), -torch.inf).triu(1) if stack.is_decoder else bias


def reference(run, inputs):
    """Everything in expected.safetensors; leaves the run trained."""
    tensors = run.tensors()
    run.requires_grad_(False)
    for parameter in tensors.values():
        parameter.requires_grad_(True)
    logits, loss = run(inputs)
    loss.backward()
    expected = {"logits": logits.detach(), "loss": loss.detach()}
    moved = {name: parameter for name, parameter in tensors.items() if parameter.grad is not None}
    expected |= {f"grad.{name}": parameter.grad.clone() for name, parameter in moved.items()}
    optimizer, losses, watched = adamw(list(tensors.values())), [], []
    for step in range(STEPS):
        if hasattr(run, "before"):
            run.before(step)
        optimizer.zero_grad()
        _, loss = run(inputs)
        if hasattr(run, "watched"):
            watched.append(run.watched())
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    expected["losses"] = torch.stack(losses)
    if watched:
        expected["watched"] = torch.stack(watched).to(logits.dtype)
    # softmax ignores the bias of a key: its gradient, and so its path under AdamW, is rounding noise.
    noisy = ("key.bias", *getattr(run, "noisy", ()))
    finals = {name: value for name, value in tensors.items() if not name.endswith(noisy)}
    expected |= {f"final.{name}": parameter.detach().clone() for name, parameter in finals.items()}
    if hasattr(run, "before"):
        run.before(None)
    with torch.no_grad():
        expected["logits_final"] = run(inputs)[0]
    return expected


def write_case(folder, make, base):
    """The files of a case, in float64 but for the width of a number; prints how far float32 can be trusted. `make` gives the run
    at its start, the batch, the settings, and what else is expected."""
    run, inputs, settings, beside = make()
    fresh(folder / "adapter")
    save(folder / "inputs.safetensors", inputs)
    save(folder / "adapter" / "adapter_model.safetensors", run.tensors())
    task = "SEQ_CLS" if inputs["labels"].dim() == 1 else "SEQ_2_SEQ_LM"
    config = {"base_model_name_or_path": base, "task_type": task} | settings
    write_json(folder / "adapter" / "adapter_config.json", config)
    with in_float64():
        exact = reference(run.double(), inputs)
    save(folder / "expected.safetensors", {name: value.float() for name, value in (exact | beside).items()})
    found = reference(make()[0], inputs)
    print(folder.name, "losses", " ".join(f"{x:.4f}" for x in exact["losses"].tolist()))
    for prefix in ["logits", "loss", "losses", "logits_final", "watched", "grad.", "final."]:
        keys = [k for k in found if k == prefix or (prefix.endswith(".") and k.startswith(prefix))]
        if keys:
            worst = max(keys, key=lambda k: (found[k] - exact[k]).abs().max())
            error = (found[worst] - exact[worst]).abs().max()
            print(f"  {prefix:13} {len(keys):3} tensors, worst float32 error {error:.1e} ({worst})")
