"""Writes the reference run of IncreLoRA, from the paper (Zhang et al., 2023, arXiv:2308.12043) in float64.

Checked by reading against github.com/FeiyuZhang98/IncreLoRA (commit 7cb7830), loralib/loralib/increlora.py and NLU/src/transformers:
the scale with the rank that a map has, the sensitivity of a map's update, the order of scores, growth and step, what is trained in advance,
and the warm-up of new groups. Otherwise than there the last growth ends at the budget, what was to come then goes, and new triplets follow
the run's learning rate behind their warm-up.

Usage: python scripts/golden/increlora.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, in_float64, save
from methods import ROBERTA, base_model
from noise import KEY, PARTS, Random, data, pick, rows

FOLDER = REPO / "peft-reparam" / "tests" / "golden" / "increlora-run"
STEPS, RATE, DECAY, CLIP, EPSILON, SEED, WARMUP = 24, 1e-2, 0.1, 0.5, 1e-3, 3, 3
FIRST, TARGET, MORE, TOP, START, INTERVAL, ALPHA, BETAS, WEIGHT = 2, 3, 4, 2, 3, 5, 5.0, (0.85, 0.8), 0.3
ORDER = ["query", "key", "value", "output", "up", "down"]


class Map:
    """P diag(E) Q beside a linear map, in the layout [in, out]."""

    def __init__(self, path, site, module):
        self.path, self.site, self.module = path, site, module
        self.blocks, self.rank = [], FIRST
        self.add(FIRST, 0.0)
        self.mean = self.deviation = torch.zeros(())
        module.register_forward_hook(lambda _, inputs, output: output + inputs[0] @ self.update())

    def add(self, rank, e):
        number = len(self.blocks)

        def draw(leaf, *dims):
            random = Random(SEED, f"increlora.{self.site}.{number}.{leaf}")
            numbers = [0.02 * random.normal() for _ in range(dims[0] * dims[1])]
            return torch.tensor(numbers).float().double().view(dims)

        e = torch.full((rank,), e).float().double()
        values = [draw("p", self.module.in_features, rank), e, draw("q", rank, self.module.out_features)]
        self.blocks.append([torch.nn.Parameter(value) for value in values])
        # That of what is to come stays.
        self.blocks[-1][1].requires_grad_(number == 0)

    def joined(self):
        p, e, q = zip(*self.blocks)
        return torch.cat(p, 1), torch.cat(e), torch.cat(q)

    def update(self):
        p, e, q = self.joined()
        self.product = ALPHA / (self.rank + 1e-5) * (p * e) @ q
        if torch.is_grad_enabled():
            self.product.retain_grad()
        return self.product


def penalty(maps):
    distance = lambda gram: torch.linalg.norm(gram - torch.eye(len(gram)))
    factors = [map.joined() for map in maps]
    return WEIGHT * torch.stack([distance(x) for p, _, q in factors for x in (p.T @ p, q @ q.T)]).mean()


def scheduled(step):
    return RATE * (step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP))


def run(model, inputs):
    model.eval().requires_grad_(False)
    model.classifier.requires_grad_(True)
    place = {own: path for path, own in PARTS.items()}
    maps = []
    for layer in range(model.config.num_hidden_layers):
        for own in ORDER:
            path = f"roberta.encoder.layer.{layer}.{place[own]}"
            maps.append(Map(path, f"encoder.{layer}.{own}", model.get_submodule(path)))
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=RATE, eps=EPSILON, weight_decay=DECAY)
    born = {}

    def enter(parameter, step):
        born[parameter] = step
        optimizer.add_param_group({"params": [parameter]})

    for map in maps:
        for parameter in map.blocks[0]:
            enter(parameter, None)
    losses, scores, ranks, grows = [], [], [], True
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(**pick(inputs, rows(step))).loss
        loss = loss + penalty(maps)
        loss.backward()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        losses.append(loss.detach())
        if grows:
            for map in maps:
                seen = (map.product * map.product.grad).abs().sum().detach() / map.product.numel() ** 0.5
                map.mean = BETAS[0] * map.mean + (1 - BETAS[0]) * seen
                map.deviation = BETAS[1] * map.deviation + (1 - BETAS[1]) * (seen - map.mean).abs()
            scores.append(torch.stack([map.mean * map.deviation for map in maps]))
        for group in optimizer.param_groups:
            since = born.get(group["params"][0])
            age = WARMUP if since is None else step - since - 1
            group["lr"] = scheduled(step) * min(1.0, age / WARMUP)
        optimizer.step()
        if step == 0:
            for map in maps:
                for _ in range(MORE):
                    map.add(1, 1e-5)
                    enter(map.blocks[-1][0], step), enter(map.blocks[-1][2], step)
        if grows and step > START and step % INTERVAL == 0:
            ordered = scores[-1].argsort(descending=True)
            values = scores[-1][ordered]
            print(f"  step {step}: scores at the edge are {((values[TOP - 1] - values[TOP]) / values[TOP]).item():.1e} apart,",
                  f"of the chosen {((values[0] - values[1]) / values[1]).item():.1e}")
            left = TARGET * len(maps) - sum(map.rank for map in maps)
            for i in ordered[:TOP].tolist():
                more = min(MORE, left)
                left -= more
                first = len(maps[i].blocks) - MORE
                for block in maps[i].blocks[first : first + more]:
                    block[1].requires_grad_(True)
                    enter(block[1], step)
                maps[i].rank += more
                for _ in range(more):
                    maps[i].add(1, 1e-5)
                    enter(maps[i].blocks[-1][0], step), enter(maps[i].blocks[-1][2], step)
            if left == 0:
                grows = False
                for map in maps:
                    for block in map.blocks[len(map.blocks) - MORE :]:
                        block[0].requires_grad_(False), block[2].requires_grad_(False)
                    del map.blocks[len(map.blocks) - MORE :]
        ranks.append(torch.tensor([float(map.rank) for map in maps]))
    print("  ranks", ranks[-1].int().tolist(), "losses", " ".join(f"{x:.4f}" for x in losses))
    found = {"losses": torch.stack(losses), "scores": torch.stack(scores), "ranks": torch.stack(ranks)}
    for map in maps:
        p, e, q = map.joined()
        found |= {f"final.{KEY}{map.path}.lora_{leaf}": x for leaf, x in [("A", p.T), ("E", e[:, None]), ("B", q.T)]}
    with torch.no_grad():
        found["logits"] = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    return found


def main():
    os.chdir(MODELS)
    fresh(FOLDER)
    inputs = data("increlora-run")
    save(FOLDER / "inputs.safetensors", inputs)
    torch.set_default_dtype(torch.float64)
    model = base_model(ROBERTA, attn_implementation="eager").double()
    with in_float64():
        found = run(model, inputs)
    save(FOLDER / "expected.safetensors", {key: value.float() for key, value in found.items()})


if __name__ == "__main__":
    main()
