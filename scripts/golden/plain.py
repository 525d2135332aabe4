"""A RoBERTa in plain operations of torch, from the equations of its paper, with the places where MAM adapters and ProPETL act; and
what their cases share: gradients, ten steps of AdamW, the files."""

import torch
from common import MODELS, batch, fresh, generator, save
from safetensors.torch import load_file

BASE, LENGTHS, LABELS, HEADS, EPS, PAD = "roberta-classify", [11, 8, 7, 3], [0, 2, 1, 2], 3, 1e-5, 1
STEPS, RATE, DECAY, BETAS, TINY = 10, 1e-2, 0.01, (0.9, 0.999), 1e-8


def turned(tensor):
    return tensor.T if tensor.ndim == 2 else tensor


def base(dtype):
    """The frozen tensors by their names in the file, and the head's apart, as `[in, out]`."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(MODELS / BASE / "model.safetensors").items()}
    head = {
        f"head.Classifier.{ours}.{leaf}": turned(tensors.pop(f"classifier.{theirs}.{leaf}"))
        for ours, theirs in [("dense", "dense"), ("out", "out_proj")]
        for leaf in ["weight", "bias"]
    }
    return {name.removeprefix("roberta."): tensor for name, tensor in tensors.items()}, head


def inputs(name):
    return batch(generator(name), "roberta", LENGTHS) | {"labels": torch.tensor(LABELS)}


def layer_norm(x, gain, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * gain + bias


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def split(x):
    """`[batch, tokens, hidden]` into heads, `[batch, heads, tokens, width]`."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Untuned:
    """What a method does; the base's own where a case says nothing else."""

    def tensor(self, name, own):
        """What stands in the place of a tensor of the base."""
        return own

    def query_and_value(self, layer, x):
        """What is added to the queries and to the values of a layer."""
        return 0, 0

    def prefix(self, layer):
        """Keys and values in front of those of the text, `[rows, hidden]` each."""
        return None

    def beside_feed_forward(self, layer, x):
        """What is added to the output of the feed-forward network that reads x."""
        return 0

    def behind_feed_forward(self, layer, output, normalized):
        """What is added to its output, given also the normalized sum with the residual."""
        return 0


def logits(base, head, method, inputs):
    """Of each sequence, by its first token."""
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    # Positions count real tokens only: a prefix is not one of them.
    positions = real.long().cumsum(1) * real + PAD
    x = base["embeddings.word_embeddings.weight"][ids] + base["embeddings.position_embeddings.weight"][positions]
    x = x + base["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x, base["embeddings.LayerNorm.weight"], base["embeddings.LayerNorm.bias"])
    layers = max(int(name.split(".")[2]) for name in base if name.startswith("encoder.layer.")) + 1
    for layer in range(layers):
        of = lambda name: method.tensor(f"encoder.layer.{layer}.{name}", base[f"encoder.layer.{layer}.{name}"])
        linear = lambda name, x: x @ of(f"{name}.weight").T + of(f"{name}.bias")
        norm = lambda name, x: layer_norm(x, of(f"{name}.LayerNorm.weight"), of(f"{name}.LayerNorm.bias"))
        q, k, v = (linear(f"attention.self.{name}", x) for name in ["query", "key", "value"])
        more = method.query_and_value(layer, x)
        q, k, v = split(q + more[0]), split(k), split(v + more[1])
        seen, prefix = real, method.prefix(layer)
        if prefix is not None:
            size, rows = len(ids), len(prefix[0])
            k, v = (torch.cat([split(p[None]).expand(size, -1, -1, -1), own], 2) for p, own in zip(prefix, (k, v)))
            seen = torch.cat([torch.ones(size, rows, dtype=torch.bool), seen], 1)
        scores = q @ k.transpose(2, 3) / (q.shape[-1] ** 0.5)
        shares = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1)
        context = (shares @ v).transpose(1, 2).flatten(2)
        x = norm("attention.output", x + linear("attention.output.dense", context))
        output = linear("output.dense", gelu(linear("intermediate.dense", x)))
        output = output + method.beside_feed_forward(layer, x)
        output = output + method.behind_feed_forward(layer, output, norm("output", output + x))
        x = norm("output", output + x)
    first = x[:, 0]
    dense = torch.tanh(first @ head["head.Classifier.dense.weight"] + head["head.Classifier.dense.bias"])
    return dense @ head["head.Classifier.out.weight"] + head["head.Classifier.out.bias"]


def check():
    """The plain operations are transformers' RoBERTa."""
    given, found = (load_file(MODELS / BASE / f"{name}.safetensors") for name in ["inputs", "expected"])
    assert (logits(*base(torch.float64), Untuned(), given) - found["logits"]).abs().max() < 1e-5


def expected(start, method, given, rates=lambda name: 1.0, watch=lambda tensors: {}):
    """Everything in expected.safetensors, in the type of the start: logits, gradients, ten steps of AdamW by its definition, and,
    apart, what is watched before and after each step."""
    dtype = next(iter(start.values())).dtype
    frozen, _ = base(dtype)
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    run = lambda: logits(frozen, tensors, method(tensors), given)
    moments, found, losses, watched = {}, {}, [], []
    for step in range(STEPS + 1):
        now = run()
        loss = -now.log_softmax(-1)[range(len(now)), given["labels"]].mean()
        gradients = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values()))))
        watched.append(watch(tensors))
        if step == 0:
            found = {"logits": now, "loss": loss} | {f"grad.{name}": g for name, g in gradients.items()}
        if step == STEPS:
            break
        losses.append(loss)
        with torch.no_grad():
            for name, tensor in tensors.items():
                rate, g = RATE * rates(name), gradients[name]
                first, second = moments.get(name, (0, 0))
                first, second = BETAS[0] * first + (1 - BETAS[0]) * g, BETAS[1] * second + (1 - BETAS[1]) * g * g
                moments[name] = first, second
                direction = first / (1 - BETAS[0] ** (step + 1)) / ((second / (1 - BETAS[1] ** (step + 1))).sqrt() + TINY)
                tensor -= rate * (DECAY * tensor + direction)
    found |= {"losses": torch.stack(losses), "logits_final": now}
    found |= {f"final.{name}": tensor for name, tensor in tensors.items()}
    watched = {name: torch.stack([one[name] for one in watched]) for name in watched[0]}
    return {name: tensor.detach() for name, tensor in found.items()}, watched


def write(folder, name, start, method, **how):
    """A case: start, inputs and what is expected of them, computed in float64; says how far float32 is from that. Gives what was
    watched in both."""
    check()
    given = inputs(name)
    double = {key: tensor.double() for key, tensor in start.items()}
    (exact, watched), (single, also) = (expected(values, method, given, **how) for values in (double, start))
    exact |= {name: values[-1] for name, values in watched.items() if name.startswith("masks.")}
    fresh(folder)
    save(folder / "inputs.safetensors", given)
    save(folder / "start.safetensors", start)
    save(folder / "expected.safetensors", {key: tensor.float() for key, tensor in exact.items()})
    print(folder.name, "losses", " ".join(f"{x:.4f}" for x in exact["losses"].tolist()))
    for prefix in ["logits", "loss", "losses", "logits_final", "grad.", "final."]:
        keys = [k for k in exact if k == prefix or (prefix.endswith(".") and k.startswith(prefix))]
        worst = max(keys, key=lambda k: (exact[k] - single[k]).abs().max())
        print(f"  {prefix:13} {len(keys):3} tensors, float32 off by {(exact[worst] - single[worst]).abs().max():.1e} ({worst})")
    return watched, also
