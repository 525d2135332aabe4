"""Writes the reference runs of LoRAPrune, from the paper (Zhang et al., 2023, arXiv:2305.18403) in float64.

Checked by reading against github.com/aim-uofa/LoRAPrune (commit 4da5272), loraprune/utils.py, trainer.py and lora.py: the criterion by the
gradients of the factors, which leaves the scale out, groups, norms, the moving average, the cubic, which layers are spared, and masks behind
the bias. Otherwise than there the last choice is at the end of the schedule.

Usage: python scripts/golden/loraprune.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, in_float64, save
from methods import ROBERTA, base_model
from noise import KEY, PARTS, Random, data, pick, rows

TESTS = REPO / "peft-reparam" / "tests" / "golden"
STEPS, RATE, DECAY, CLIP, EPSILON, SEED = 20, 1e-2, 0.1, 0.5, 1e-3, 3
R, ALPHA, RATIO, EVERY, WARMUP, COOLDOWN = 2, 5.0, 0.5, 4, 0.1, 0.2
OWN = {part: path for path, part in PARTS.items()}
MEMBERS = {"self_attention": ["query", "key", "value", "output"], "feed_forward": ["up", "down"]}
OUTPUTS = ["query", "key", "value", "up"]


class Map:
    """A linear map with a LoRA in the layout [in, out], and a mask over its outputs or its numbers."""

    def __init__(self, path, site, module):
        self.path, self.module = path, module
        random, inside = Random(SEED, f"lora.{site}.a"), module.in_features
        bound = inside**-0.5
        a = [-bound + 2 * bound * random.unit() for _ in range(inside * R)]
        self.a = torch.nn.Parameter(torch.tensor(a).float().double().view(inside, R))
        self.b = torch.nn.Parameter(torch.zeros(R, module.out_features))
        self.outputs, self.numbers = 1.0, None
        module.register_forward_hook(self.hook)

    def whole(self):
        return self.module.weight.T + ALPHA / R * self.a @ self.b

    def hook(self, _, inputs, output):
        if self.numbers is not None:
            return inputs[0] @ (self.whole() * self.numbers) + self.module.bias
        return (output + ALPHA / R * inputs[0] @ self.a @ self.b) * self.outputs

    def importance(self):
        a, b = self.a.grad, self.b.grad
        return ((a @ self.b + self.a @ b - a @ b) * self.whole()).abs().detach()


def share(step):
    """Of the whole ratio, where there is a choice."""
    first, last = WARMUP * STEPS, int((1 - COOLDOWN) * STEPS)
    if step <= first or step > last or (step % EVERY and step != last):
        return None
    return 1 - (1 - (step - first) / (last - first)) ** 3


def choose(mask, importance, ratio):
    count = int(ratio * mask.numel())
    order = (importance * mask).flatten().argsort(stable=True)
    values = (importance * mask).flatten()[order]
    print(f"    {count} of {mask.numel()} go, the scores at the edge are {((values[count] - values[count - 1]) / values[count]).item():.1e} apart")
    chosen = torch.ones(mask.numel())
    chosen[order[:count]] = 0.0
    return chosen.view_as(mask)


def run(model, inputs, structured):
    model.eval().requires_grad_(False)
    model.classifier.requires_grad_(True)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    maps = {}
    for layer in range(layers):
        for own in OWN if structured else ["value", "down"]:
            if not own.startswith("norm"):
                path = f"roberta.encoder.layer.{layer}.{OWN[own]}"
                maps[layer, own] = Map(path, f"encoder.{layer}.{own}", model.get_submodule(path))
    pruned = range(layers // 10, layers - 1)
    if structured:
        masks = {(layer, block): torch.ones(heads if block == "self_attention" else model.config.intermediate_size)
                 for layer in pruned for block in MEMBERS}
    else:
        masks = {(layer, own): torch.ones(map.whole().shape) for (layer, own), map in maps.items() if layer in pruned}
        for key, mask in masks.items():
            maps[key].numbers = mask
    means = {key: torch.zeros_like(mask) for key, mask in masks.items()}
    parameters = [p for map in maps.values() for p in (map.a, map.b)] + list(model.classifier.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, eps=EPSILON, weight_decay=DECAY)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(**pick(inputs, rows(step))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        losses.append(loss.detach())
        for (layer, block), mean in means.items():
            if structured:
                seen = 0.0
                for own in MEMBERS[block]:
                    numbers = maps[layer, own].importance()
                    sums = (numbers.sum(0) if own in OUTPUTS else numbers.sum(1)).view(mean.numel(), -1).sum(1)
                    seen = seen + sums / (torch.linalg.norm(sums) + 1e-8)
            else:
                seen = maps[layer, block].importance()
            means[layer, block] = 0.9 * mean + 0.1 * seen
        part = share(step)
        if part is not None:
            for key, mask in masks.items():
                masks[key] = choose(mask, means[key], part * RATIO)
                if structured:
                    for own in MEMBERS[key[1]]:
                        if own in OUTPUTS:
                            map = maps[key[0], own]
                            map.outputs = masks[key].repeat_interleave(map.module.out_features // mask.numel())
                else:
                    maps[key].numbers = masks[key]
        for group in optimizer.param_groups:
            group["lr"] = RATE * (STEPS - step) / STEPS
        optimizer.step()
    print("  losses", " ".join(f"{x:.4f}" for x in losses))
    found = {"losses": torch.stack(losses)}
    for layer, block in masks:
        name = f"encoder.{layer}.{block}"
        form = (-1, 1) if structured else masks[layer, block].shape
        found |= {f"mask.masks.{name}": masks[layer, block].view(form), f"importance.{name}": means[layer, block].view(form)}
    for map in maps.values():
        found |= {f"final.{KEY}{map.path}.lora_A.weight": map.a.T, f"final.{KEY}{map.path}.lora_B.weight": map.b.T}
    with torch.no_grad():
        found["logits"] = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    return found


def main():
    os.chdir(MODELS)
    torch.set_default_dtype(torch.float64)
    for case, structured in [("loraprune-run", True), ("loraprune-unstructured-run", False)]:
        folder = fresh(TESTS / case)
        inputs = data(case)
        save(folder / "inputs.safetensors", inputs)
        model = base_model(ROBERTA, attn_implementation="eager").double()
        with in_float64():
            found = run(model, inputs, structured)
        small = lambda name, x: x.half() if name.startswith("mask.") else x.float()
        save(folder / "expected.safetensors", {name: small(name, x) for name, x in found.items()})


if __name__ == "__main__":
    main()
