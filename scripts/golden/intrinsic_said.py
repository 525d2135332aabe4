"""Writes a case of Intrinsic SAID on the golden T5, from the paper (Aghajanyan et al., 2021, arXiv:2012.13255, eq. 2 and 3) in float64.

Checked by reading against github.com/rabeehk/compacter, seq2seq/projections/intrinsic.py: the Fastfood map of each tensor, of a power of
two, one vector for all tensors and a scale for each. Otherwise than there the random numbers are the library's (`noise.py`), every scale
has a tensor (there the vector itself is counted as one, so that a number of the d is dead), and the gradient is that of the map (there a
tensor's is divided by the size of its transform).

Usage: python scripts/golden/intrinsic_said.py   (after seq_models.py)
"""

import math
import os

import torch
from common import MODELS, REPO, fresh, generator, in_float64, normal, save, write_json
from methods import LABEL_LENGTHS, LENGTHS, STEPS, T5, base_model
from noise import Random
from seq_models import seq_batch
from torch.func import functional_call

FOLDER = REPO / "peft-reparam" / "tests" / "golden" / "intrinsic-said-t5"
THETA, SEED = 301, 5
PREFIX = "base_model.intrinsic_said."


def hadamard(x):
    """H x without a scale."""
    h = 1
    while h < len(x):
        pairs = x.view(-1, 2, h)
        x = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        h *= 2
    return x


def fastfood(name, count):
    """theta -> H G Pi H S theta / (||G|| sqrt(D)), the first D numbers of it."""
    n = 1 << (count - 1).bit_length()
    random = lambda part: Random(SEED, f"said.{name}.{part}")
    signs, gauss = random("signs"), random("gauss")
    signs = torch.tensor([1.0 if signs.bits() & 1 == 0 else -1.0 for _ in range(n)], dtype=torch.float64)
    gauss = torch.tensor([gauss.normal() for _ in range(n)], dtype=torch.float64)
    order = torch.tensor(random("order").permutation(n))
    divisor = gauss.square().sum().sqrt() * math.sqrt(count)

    def apply(theta):
        padded = torch.nn.functional.pad(theta, (0, n - len(theta)))  # cut off, if n is less
        return hadamard(hadamard(padded * signs)[order] * gauss)[:count] / divisor

    return apply


def rotated(name, parameter):
    """The library holds linear maps transposed, and goes through a tensor as it holds it."""
    return parameter.dim() == 2 and name != "shared.weight" and "relative_attention_bias" not in name


def reference(model, inputs, theta, scales):
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    maps = {name: fastfood(name, parameter.numel()) for name, parameter in base.items()}
    theta, scales = theta.double().requires_grad_(), scales.double().requires_grad_()

    def run():
        tensors = {}
        for place, (name, parameter) in enumerate(base.items()):
            update = scales[place] * maps[name](theta)
            shape = reversed(parameter.shape) if rotated(name, parameter) else parameter.shape
            update = update.view(*shape)
            tensors[name] = parameter + (update.T if rotated(name, parameter) else update)
        output = functional_call(model, tensors, kwargs=inputs)
        return output.logits, output.loss

    logits, loss = run()
    loss.backward()
    expected = {"logits": logits, "loss": loss}
    expected |= {f"grad.{PREFIX}theta": theta.grad.clone(), f"grad.{PREFIX}lambda": scales.grad.clone()}
    optimizer = torch.optim.AdamW([theta, scales], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, loss = run()
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    expected["losses"] = torch.stack(losses)
    expected |= {f"final.{PREFIX}theta": theta, f"final.{PREFIX}lambda": scales}
    expected["logits_final"] = run()[0]
    return {key: value.detach().float() for key, value in expected.items()}


def main():
    os.chdir(MODELS)
    gen = generator("intrinsic-said-t5")
    inputs = seq_batch(gen, "t5", LENGTHS, LABEL_LENGTHS, None)
    model = base_model(T5, attn_implementation="eager").double().eval()
    tensors = len(list(model.named_parameters()))
    theta, scales = normal(gen, (THETA,), 0.1), normal(gen, (tensors,), 0.3, mean=1.0)
    fresh(FOLDER / "adapter")
    save(FOLDER / "inputs.safetensors", inputs)
    save(FOLDER / "adapter" / "adapter_model.safetensors", {f"{PREFIX}theta": theta, f"{PREFIX}lambda": scales})
    settings = {
        "peft_type": "INTRINSIC_SAID",
        "base_model_name_or_path": T5,
        "task_type": "SEQ_2_SEQ_LM",
        "intrinsic_dim": THETA + tensors,
        "intrinsic_said": True,
        "projection_seed": SEED,
    }
    write_json(FOLDER / "adapter" / "adapter_config.json", settings)
    with in_float64():
        expected = reference(model, inputs, theta, scales)
    save(FOLDER / "expected.safetensors", expected)
    print("losses", " ".join(f"{x:.4f}" for x in expected["losses"].tolist()), tensors, "tensors")
    print("smallest gradient of theta", expected[f"grad.{PREFIX}theta"].abs().min().item())


if __name__ == "__main__":
    main()
