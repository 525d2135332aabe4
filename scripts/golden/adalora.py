"""Writes the reference run of AdaLoRA: 200 steps in which PEFT takes ranks away.

Usage: python scripts/golden/adalora.py   (after models.py)
"""

import copy
import os

import torch
from common import MODELS, REPO, batch, fresh, generator, in_float64, normal, read_json, save, write_json
from methods import ROBERTA, base_model, trainable
from peft import AdaLoraConfig, PeftModel, TaskType, get_peft_model

FOLDER = REPO / "peft-reparam" / "tests" / "golden" / "adalora-run"
SEED = 2
STEPS, EXAMPLES, SIZE, RATE, CLIP = 200, 24, 8, 5e-3, 1.0
CONFIG = AdaLoraConfig(
    task_type=TaskType.SEQ_CLS,
    init_r=4,
    target_r=2,
    lora_alpha=8,
    tinit=15,
    tfinal=40,
    deltaT=3,
    beta1=0.85,
    beta2=0.8,
    orth_reg_weight=0.1,
    total_step=STEPS,
    target_modules=["query", "value"],
)


def start(seed):
    """Examples, and the model as AdaLoRA starts it."""
    gen = generator(f"adalora-run/{seed}")
    inputs = batch(gen, "roberta", [3 + 5 * i % 9 for i in range(EXAMPLES)])
    inputs["labels"] = torch.randint(0, 3, (EXAMPLES,), generator=gen)
    model = get_peft_model(base_model(ROBERTA, attn_implementation="eager"), copy.deepcopy(CONFIG))
    with torch.no_grad():
        for key, parameter in trainable(model).items():
            if "lora_E" in key:
                assert (parameter == 0).all(), key
            else:
                parameter.copy_(normal(gen, parameter.shape, 0.02 if "lora_" in key else 0.3))
    return inputs, model


def scores(allocator, names):
    """The importance of every triplet."""
    score = lambda name: allocator.exp_avg_ipt[name] * allocator.exp_avg_unc[name]
    triplets = []
    for name in names:
        e, a, b = (score(name.replace("lora_E", leaf)) for leaf in ("lora_E", "lora_A", "lora_B"))
        triplets.append(e.view(-1) + (a.mean(1) + b.mean(0)))
    return torch.cat(triplets)


def run(model, inputs):
    """Losses, importances and ranks step by step; leaves the model trained."""
    model.train()
    names = [name for name, _ in model.base_model.model.named_parameters() if "lora_E" in name]
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses, importances, patterns, margins = [], [], [], []
    config = model.peft_config["default"]
    for step in range(1, STEPS + 1):
        rows = [((step - 1) * SIZE + i) % EXAMPLES for i in range(SIZE)]
        optimizer.zero_grad()
        loss = model(**{key: value[rows] for key, value in inputs.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        model.base_model.update_and_allocate(step)
        losses.append(loss.detach())
        if step < STEPS - CONFIG.tfinal:
            importances.append(scores(model.base_model.rankallocator, names))
        pattern = config.rank_pattern
        kept = [pattern[name] if pattern else [True] * CONFIG.init_r for name in names]
        patterns.append(torch.tensor(kept).flatten().float())
        if importances and step % CONFIG.deltaT == 0 and step > CONFIG.tinit and step < STEPS - CONFIG.tfinal:
            ordered, left = importances[-1].sort(descending=True).values, int(patterns[-1].sum())
            if left < len(ordered):
                margins.append((ordered[left - 1] - ordered[left]) / ordered[left - 1])
    return {
        "losses": torch.stack(losses),
        "importances": torch.stack(importances),
        "patterns": torch.stack(patterns),
    }, min(margins)


def logits(model, inputs):
    model.eval()
    with torch.no_grad():
        return model(**{key: value for key, value in inputs.items() if key != "labels"}).logits


def compared(seed):
    """The run in float32, its float64 twin, and how near two importances at a budget's edge came."""
    inputs, model = start(seed)
    double = copy.deepcopy(model).double()
    with in_float64():
        exact, _ = run(double, inputs)
    first = copy.deepcopy(model)
    found, margin = run(model, inputs)
    return inputs, first, model, found, exact, margin


def write_adapter(model, folder):
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    settings = read_json(folder / "adapter_config.json")
    settings["target_modules"].sort()
    write_json(folder / "adapter_config.json", settings)


def main():
    inputs, first, model, found, exact, margin = compared(SEED)
    fresh(FOLDER)
    save(FOLDER / "inputs.safetensors", inputs)
    write_adapter(first, FOLDER / "start")
    write_adapter(model, FOLDER / "adapter")
    found["logits"] = logits(model, inputs)
    again = PeftModel.from_pretrained(base_model(ROBERTA), FOLDER / "adapter")
    assert torch.allclose(logits(again, inputs), found["logits"], atol=1e-5), "reload"
    save(FOLDER / "expected.safetensors", found)
    report(found, exact, margin)


def report(found, exact, margin):
    same = torch.equal(found["patterns"], exact["patterns"].float())
    relative = ((found["importances"] - exact["importances"]).abs() / exact["importances"].amax(1, True)).max()
    kept = found["patterns"].sum(1).int().tolist()
    print(f"  kept {kept[::10]} {kept[-1]}, by map {found['patterns'][-1].view(-1, CONFIG.init_r).sum(1).int().tolist()}")
    print(f"  losses {found['losses'][0]:.4f} to {found['losses'][-1]:.4f}, same ranks in float64: {same}, margin {margin:.1e}")
    error = (found["losses"] - exact["losses"]).abs().max()
    print(f"  worst float32 errors: losses {error:.1e}, importances {relative:.1e} of the step's largest")


if __name__ == "__main__":
    os.chdir(MODELS)
    main()
