"""Things both generators share: seeds, random weights, batches and file helpers."""

import json
import os
import shutil
import zlib
from pathlib import Path
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

REPO = Path(__file__).resolve().parents[2]
MODELS = REPO / "peft-core" / "tests" / "golden"


def generator(name):
    """A random generator that depends only on `name`, so that cases do not influence each other."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def normal(gen, shape, std, mean=0.0):
    # Drawn in float64 and rounded: the same numbers whatever vector width the machine has.
    return (mean + std * torch.randn(tuple(shape), generator=gen, dtype=torch.float64)).float()


def is_layer_norm(name):
    return "layernorm" in name.lower() or "layer_norm" in name.lower()


@torch.no_grad()
def randomize_model(model, gen):
    """Fill every parameter with non-degenerate numbers; tied tensors are drawn once."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            value = normal(gen, parameter.shape, 0.2)
        elif is_layer_norm(name):
            value = normal(gen, parameter.shape, 0.2, mean=1.0)
        else:
            value = normal(gen, parameter.shape, 0.3)
        parameter.copy_(value)


def batch(gen, kind, lengths, vocab=97):
    """Right-padded token ids with their mask, and segment ids for BERT."""
    width = max(lengths)
    pad, first, last = (1, 0, 2) if kind == "roberta" else (0, 2, 3)
    ids = torch.full((len(lengths), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    segments = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, vocab, (length,), generator=gen)
        ids[row, 0] = first
        ids[row, length - 1] = last
        mask[row, :length] = 1
        if kind == "bert":
            split = length // 2
            ids[row, split] = last
            segments[row, split + 1 : length] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if kind == "bert":
        inputs["token_type_ids"] = segments
    return inputs


def in_float64():
    """Runs of a model in float64 within this context are so throughout: transformers casts norms and
    softmax to `torch.float32` by that name."""
    return mock.patch.object(torch, "float32", torch.float64)


def save(path, tensors):
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, str(path), metadata={"format": "pt"})


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def read_json(path):
    return json.loads(Path(path).read_text())


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
