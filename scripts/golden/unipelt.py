"""Writes the reference case of UniPELT, with the package `adapters`: its gates take their mean over padding too.

Usage: python scripts/golden/unipelt.py   (after models.py; in the environment of adapterhub.py)
"""

import adapters
import torch
from adapters import LoRAConfig, PrefixTuningConfig, SeqBnConfig, UniPELTConfig
from common import MODELS, REPO, batch, fresh, generator, in_float64, normal, save
from transformers import AutoModelForSequenceClassification

FOLDER = REPO / "peft-hybrid" / "tests" / "golden" / "unipelt"
BASE, NAME, LENGTHS, LABELS = "roberta-classify", "unipelt", [11, 8, 7, 3], [0, 2, 1, 2]
STEPS, RATE, DECAY = 10, 1e-2, 0.01
CONFIG = UniPELTConfig(
    PrefixTuningConfig(prefix_length=4, bottleneck_size=11), SeqBnConfig(reduction_factor=4.8), LoRAConfig(r=3, alpha=7)
)
# What the package calls a module behind `roberta.encoder.layer.N.`, and what the library does.
MODULES = {
    f"attention.self.{name}.loras.{NAME}.{theirs}": f"{ours}.encoder.N.{name}{leaf}"
    for name in ["query", "value"]
    for theirs, ours, leaf in [("lora_A", "lora.factors", ".a"), ("lora_B", "lora.factors", ".b"), ("gate", "gates", "")]
} | {
    f"attention.self.prefix_tuning.prefix_gates.{NAME}": "gates.encoder.N.self_attention",
    f"output.adapters.{NAME}.gate": "gates.encoder.N.feed_forward",
    f"output.adapters.{NAME}.adapter_down.0": "adapter.adapters.encoder.N.feed_forward.down",
    f"output.adapters.{NAME}.adapter_up": "adapter.adapters.encoder.N.feed_forward.up",
}
PREFIX = {"wte": "embedding", "control_trans.0": "projection.inner", "control_trans.2": "projection.outer"}


def own_name(name):
    """The library's name of a trained tensor, and whether it holds it transposed."""
    if name.startswith("classifier."):
        module, leaf = name.removeprefix("classifier.").split(".")
        return f"head.Classifier.{'dense' if module == 'dense' else 'out'}.{leaf}", leaf == "weight"
    if ".prefix_tunings." in name:
        module, leaf = name.split(".self_prefix.")[1].rsplit(".", 1)
        own = PREFIX[module]
        return f"tuner.prefix.{own}" + ("" if module == "wte" else f".{leaf}"), module != "wte" and leaf == "weight"
    layer, module = name.removeprefix("roberta.encoder.layer.").split(".", 1)
    if module.endswith(("lora_A", "lora_B")):
        return "tuner." + MODULES[module].replace("N", layer), True
    module, leaf = module.rsplit(".", 1)
    return f"tuner.{MODULES[module].replace('N', layer)}.{leaf}", leaf == "weight"


def model(dtype):
    made = AutoModelForSequenceClassification.from_pretrained(MODELS / BASE)
    adapters.init(made)
    made.add_adapter(NAME, config=CONFIG, set_active=True)
    made.train_adapter(NAME)
    gen = generator("unipelt")
    trained = {}
    for name, parameter in made.named_parameters():
        # The pool has a prefix once more for every layer, the same parameter.
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.copy_(normal(gen, parameter.shape, 0.4))
            trained[name] = parameter
    return made.to(dtype).eval(), trained


def run(made, trained, inputs):
    own = lambda kind, tensors: {
        kind + own_name(name)[0]: tensor.T if own_name(name)[1] else tensor for name, tensor in tensors.items()
    }
    start = {name: tensor.detach().clone() for name, tensor in own("", trained).items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=DECAY)
    found, losses = {}, []
    for step in range(STEPS):
        optimizer.zero_grad()
        output = made(**inputs)
        output.loss.backward()
        if step == 0:
            gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
            found = {"logits": output.logits.detach()} | own("grad.", gradients)
        losses.append(output.loss.detach())
        optimizer.step()
    with torch.no_grad():
        found["logits_final"] = made(**inputs).logits
    return start, found | {"losses": torch.stack(losses)} | own("final.", {n: t.detach() for n, t in trained.items()})


def main():
    fresh(FOLDER)
    inputs = batch(generator("unipelt inputs"), "roberta", LENGTHS) | {"labels": torch.tensor(LABELS)}
    start, single = run(*model(torch.float32), inputs)
    double = model(torch.float64)
    with in_float64():
        _, double = run(*double, inputs)
    save(FOLDER / "inputs.safetensors", inputs)
    save(FOLDER / "start.safetensors", start)
    save(FOLDER / "expected.safetensors", {name: tensor.float() for name, tensor in double.items()})
    for kind in ["logits", "losses", "grad.", "final.", "logits_final"]:
        off = max(float((single[name] - double[name]).abs().max()) for name in double if name.startswith(kind))
        print(f"{kind}: float32 is off by {off:.1e}")


if __name__ == "__main__":
    main()
