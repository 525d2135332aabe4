"""Writes the reference case of Laplace-LoRA, from the paper (Yang et al., 2023, arXiv:2308.13111) in float64 with whole precision matrices.

Checked by reading against github.com/MaximeRobeyns/bayesian_lora (commit 0a3042c), bayesian_lora/main.py: labels drawn by the model, low-rank
sums of the wide factor by repeated singular value decompositions, the two matrices of a LoRA each by itself. Otherwise than there all tokens
count, the factor of the number of tokens stands once, and the evidence has the signs of the paper.

Usage: python scripts/golden/laplace_lora.py   (after models.py)
"""

import math

import numpy as np
import torch
from common import REPO, fresh, in_float64, save, write_json
from derived import head, randomize, start
from noise import Random
from torch.nn.functional import linear

FOLDER = REPO / "peft-reparam" / "tests" / "golden" / "laplace-lora"
R, ALPHA, DIRECTIONS, SAMPLES, SEED = 2, 3.0, 6, 200, 0
KEY = "base_model.model."


class Lora(torch.nn.Module):
    """A LoRA that keeps what it reads and makes."""

    def __init__(self, path, module):
        super().__init__()
        self.path = path
        self.a = torch.nn.Parameter(torch.zeros(R, module.in_features))
        self.b = torch.nn.Parameter(torch.zeros(module.out_features, R))
        module.register_forward_hook(lambda _, inputs, output: output + self.beside(inputs[0]))

    def beside(self, x):
        self.x, self.z = x, linear(x, self.a)
        self.y = ALPHA / R * self.z @ self.b.T
        if torch.is_grad_enabled():
            self.z.retain_grad(), self.y.retain_grad()
        return self.y

    def matrices(self):
        """The parameters with the wide side in front, A [in, r] and B [out, r]."""
        return [(self.a, self.a.T), (self.b, self.b)]


def one(inputs, i):
    length = int(inputs["attention_mask"][i].sum())
    return {name: inputs[name][i : i + 1, :length] for name in ("input_ids", "attention_mask")}


def drawn_label(logits, place):
    unit, left = Random(SEED, f"label of example {place}").unit(), 0.0
    weights = torch.exp(logits - logits.max())
    for label, weight in enumerate((weights / weights.sum()).tolist()):
        left += weight
        if unit < left:
            return label
    return len(logits) - 1


def curvatures(model, loras, inputs):
    """F and S of both matrices of each LoRA: their precision is (F F^T) (x) S."""
    sums = [[[np.zeros((m.shape[0], 0)), np.zeros((R, R)), 0] for _, m in lora.matrices()] for lora in loras]
    for i in range(len(inputs["labels"])):
        logits = model(**one(inputs, i)).logits[0]
        label = drawn_label(logits.detach(), i)
        model.zero_grad()
        (-torch.log_softmax(logits, 0)[label]).backward()
        for lora, both in zip(loras, sums):
            x, z = lora.x[0].detach().numpy(), lora.z[0].detach().numpy()
            gz, gy = lora.z.grad[0].numpy(), ALPHA / R * lora.y.grad[0].numpy()
            for sum, wide, narrow in zip(both, (x, gy), (gz, z)):
                u, s, _ = np.linalg.svd(np.hstack([sum[0], wide.T]), full_matrices=False)
                sum[0] = u[:, :DIRECTIONS] * s[:DIRECTIONS]
                sum[1] = sum[1] + narrow.T @ narrow
                sum[2] += len(wide)
    return [[(f, s / rows) for f, s, rows in both] for both in sums]


def precisions(curvature):
    """Of the data alone, whole, one for each matrix."""
    return [np.kron(f @ f.T, s) for both in curvature for f, s in both]


def prior(squares, data):
    """The variance at which the evidence is largest, by its values on finer and finer grids."""
    values = [np.clip(np.linalg.eigvalsh(matrix), 0, None) for matrix in data]
    evidence = lambda log: -squares / (2 * math.exp(log)) - 0.5 * sum(np.log1p(math.exp(log) * v).sum() for v in values)
    low, high = -20.0, 20.0
    for _ in range(40):
        grid = np.linspace(low, high, 41)
        best = max(range(41), key=lambda i: evidence(grid[i]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 40)]
    return math.exp((low + high) / 2)


def covariance(model, loras, inputs, i, inverses):
    classes = model.config.num_labels
    slopes = []
    for label in range(classes):
        model.zero_grad()
        for lora in loras:
            lora.zero_grad()
        model(**one(inputs, i)).logits[0, label].backward()
        slopes.append([g.numpy().flatten() for lora in loras for g in (lora.a.grad.T, lora.b.grad)])
    return np.array([[sum(g @ inverse @ h for g, h, inverse in zip(a, b, inverses)) for b in slopes] for a in slopes])


def probabilities(mean, covariance):
    root, random, sums = np.linalg.cholesky(covariance), Random(0, "laplace.logits"), 0.0
    for _ in range(SAMPLES // 2):
        moved = root @ np.array([random.normal() for _ in mean])
        for sign in (1.0, -1.0):
            weights = np.exp(mean + sign * moved)
            sums = sums + weights / weights.sum()
    return sums / SAMPLES


def main():
    gen, inputs, model = start("laplace-lora", "roberta-classify", 0)
    model.eval().requires_grad_(False)
    modules = [(path, module) for path, module in model.named_modules() if path.endswith(("query", "value"))]
    loras = [Lora(path, module) for path, module in modules]
    tensors = {f"{KEY}{lora.path}.lora_{leaf.upper()}.weight": getattr(lora, leaf) for lora in loras for leaf in "ab"}
    randomize(tensors | head(model), gen)
    fresh(FOLDER / "adapter")
    save(FOLDER / "inputs.safetensors", inputs)
    save(FOLDER / "adapter" / "adapter_model.safetensors", tensors | head(model))
    config = {"base_model_name_or_path": "roberta-classify", "task_type": "SEQ_CLS", "peft_type": "LORA"}
    config |= {"r": R, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": ["query", "value"]}
    write_json(FOLDER / "adapter" / "adapter_config.json", config)
    model.double()
    for lora in loras:
        lora.double()
    with in_float64():
        data = precisions(curvatures(model, loras, inputs))
        squares = sum((m**2).sum().item() for lora in loras for m, _ in lora.matrices())
        variance = prior(squares, data)
        inverses = [np.linalg.inv(matrix + np.eye(len(matrix)) / variance) for matrix in data]
        count = len(inputs["labels"])
        covariances = [covariance(model, loras, inputs, i, inverses) for i in range(count)]
        with torch.no_grad():
            means = [model(**one(inputs, i)).logits[0].numpy() for i in range(count)]
    logs = [np.log(probabilities(mean, covariance)) for mean, covariance in zip(means, covariances)]
    print(f"  variance {variance:.4f}, covariances up to {max(c.max() for c in covariances):.3f}")
    print("  probabilities", np.exp(logs).round(3).tolist(), "of", [(np.exp(m) / np.exp(m).sum()).round(3).tolist() for m in means])
    found = {"variance": [variance], "covariances": np.stack(covariances), "logits": np.stack(logs)[:, None, :]}
    save(FOLDER / "expected.safetensors", {name: torch.tensor(np.array(x)).float() for name, x in found.items()})


if __name__ == "__main__":
    main()
