"""Writes what transformers computes and trains of a model without an adapter: all tensors, its biases alone, its head alone.

Usage: python scripts/golden/baselines.py   (after models.py)

The rules of `methods.py`: gradients of one batch, then ten AdamW steps on it.
"""

import copy
import os

import torch
from common import MODELS, REPO, batch, fresh, generator, in_float64, save
from methods import LABELS, LENGTHS, ROBERTA, base_model, train

PARTIAL = REPO / "peft-partial" / "tests" / "golden"

# As in `methods.py`: with this one no gradient is so small that a rounding error makes it a step of its own.
SEED = 0
TRAINED = {
    "full": lambda name: True,
    "bitfit": lambda name: name.endswith(".bias"),
    "linear-probe": lambda name: False,
}


def reference(model, inputs, chosen):
    """Everything in expected.safetensors; leaves the model trained."""
    tensors = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier.") or chosen(name))
        if parameter.requires_grad:
            tensors[f"base_model.model.{name}"] = parameter
    model.eval()
    with torch.no_grad():
        expected = {"logits": model(**inputs).logits}
    model(**inputs).loss.backward()
    expected |= {f"grad.{name}": parameter.grad.clone() for name, parameter in tensors.items()}
    expected["losses"] = train(model, inputs, tensors)
    for name, parameter in tensors.items():
        if not name.endswith("key.bias"):  # softmax ignores it: its path under AdamW is rounding noise
            expected[f"final.{name}"] = parameter.detach().clone()
    model.eval()
    with torch.no_grad():
        expected["logits_final"] = model(**inputs).logits
    return expected


def write_case(name):
    gen = generator(f"{name}/{SEED}")
    inputs = batch(gen, "roberta", LENGTHS) | {"labels": torch.tensor(LABELS[ROBERTA])}
    model = base_model(ROBERTA, attn_implementation="eager")
    double = copy.deepcopy(model).double()
    expected = reference(model, inputs, TRAINED[name])
    folder = fresh(PARTIAL / name)
    save(folder / "inputs.safetensors", inputs)
    save(folder / "expected.safetensors", expected)
    with in_float64():
        exact = reference(double, inputs, TRAINED[name])
    errors = {key: (expected[key] - exact[key]).abs().max().item() for key in expected}
    for prefix in ["logits", "losses", "grad.", "final.", "logits_final"]:
        worst = max((key for key in errors if key.startswith(prefix)), key=errors.get)
        print(f"{name} {prefix:13} worst float32 error {errors[worst]:.1e} ({worst})")


if __name__ == "__main__":
    os.chdir(MODELS)
    for case in TRAINED:
        write_case(case)
