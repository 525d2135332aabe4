"""Writes a run of Threshold-Mask, from the paper (Zhao et al., 2020, arXiv:2004.12406) in float64.

Checked by reading against github.com/ptlmasking/maskbert, code/masking/maskers.py, `MaskedLinear1` (commit 431b0a8): scores above the
threshold are 1, others 0, with the gradient of the mask as theirs; scores start uniform in the range that its `get_init_scales` gives.
Otherwise than there the head is trained, by AdamW with the decay that scores do not have.

Usage: python scripts/golden/threshold_mask.py   (after models.py)
"""

import os

import torch
from common import MODELS, REPO, fresh, in_float64, save
from methods import ROBERTA, base_model
from noise import EXAMPLES, KEY, STEPS, Random, data, linear, own_name, pick, rows
from torch.func import functional_call

FOLDER = REPO / "peft-partial" / "tests" / "golden" / "threshold-mask-run"
RATE, MASK_RATE, DECAY, CLIP, EPSILON, SEED = 1e-2, 2.5, 0.1, 0.5, 1e-3, 7
THRESHOLD, SCALE, SPARSITY = 0.02, 0.03, 0.2
SITES = ("self.query.weight", "output.dense.weight")


class Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        return (scores > THRESHOLD).to(scores.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def start(name, weight):
    site = own_name(name)[0].removeprefix("weights.")
    random, (rows, columns) = Random(SEED, f"threshold-mask.{site}"), weight.T.shape
    high = (SCALE + THRESHOLD) / SPARSITY - SCALE
    numbers = [-SCALE + (high + SCALE) * random.unit() for _ in range(rows * columns)]
    # As the library holds them: rounded to float32.
    scores = torch.tensor(numbers, dtype=torch.float64).float().double().view(rows, columns).T.contiguous()
    return scores.requires_grad_()


def run(model, inputs):
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    weights = {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if name.startswith("roberta.encoder") and name.endswith(SITES)
    }
    scores = {name: start(name, weight) for name, weight in weights.items()}
    head = [p for p in model.parameters() if p.requires_grad]
    slow = torch.optim.AdamW(head, lr=RATE, eps=EPSILON, weight_decay=DECAY)
    fast = torch.optim.AdamW(scores.values(), lr=RATE, eps=EPSILON, weight_decay=0.0)

    def masked():
        return {name: weight * Binarize.apply(scores[name]) for name, weight in weights.items()}

    losses, zeros, edges = [], [], []
    for step in range(STEPS):
        edges.append(min((s.detach() - THRESHOLD).abs().min() for s in scores.values()))
        zeros.append(sum((s <= THRESHOLD).sum() for s in scores.values()).double())
        loss = functional_call(model, masked(), kwargs=pick(inputs, rows(step))).loss
        for optimizer in (slow, fast):
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*head, *scores.values()], CLIP)
        for optimizer, factor in ((slow, 1.0), (fast, MASK_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = factor * linear(RATE, step)
            optimizer.step()
        losses.append(loss.detach())
    print(f"  the score next to the threshold in any step is {min(edges):.1e} from it")
    found = {"losses": torch.stack(losses), "zeros": torch.stack(zeros)}
    with torch.no_grad():
        found["logits"] = functional_call(model, masked(), kwargs=pick(inputs, range(EXAMPLES))).logits
    return found | {f"scores.{KEY}{name}": s for name, s in scores.items()}


def main():
    os.chdir(MODELS)
    fresh(FOLDER)
    inputs = data("threshold-mask-run")
    save(FOLDER / "inputs.safetensors", inputs)
    model = base_model(ROBERTA, attn_implementation="eager").double()
    with in_float64():
        found = run(model, inputs)
    print("  losses", " ".join(f"{x:.4f}" for x in found["losses"].tolist()))
    print("  zeros", found["zeros"].tolist())
    save(FOLDER / "expected.safetensors", {key: value.float() for key, value in found.items()})


if __name__ == "__main__":
    main()
