"""Writes the reference case of Hyperformer++: T5 of transformers with the adapters of the official code.

Usage: python scripts/golden/hyperformer.py CHECKOUT   (of github.com/rabeehk/hyperformer, commit 56b0f99; after seq_models.py)
"""

import os
import sys

import torch
from common import MODELS, REPO, fresh, generator, in_float64, normal, save, write_json
from seq_models import seq_batch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

sys.path.insert(0, sys.argv[1])
from hyperformer.adapters import (  # noqa: E402
    AdapterLayersOneHyperNetController,
    MetaAdapterConfig,
    MetaLayersAdapterController,
    TaskEmbeddingController,
)

FOLDER = REPO / "peft-additive" / "tests" / "golden" / "hyperformer-t5"
TASKS = ["a", "b", "c"]
ROWS = [2, 0, 1, 0]  # the task of each row
STEPS, SEED = 10, 0


def settings(model):
    config = MetaAdapterConfig()
    config.input_dim, config.reduction_factor = model.config.d_model, 5  # a bottleneck of 4
    config.task_embedding_dim, config.task_hidden_dim, config.projected_task_embedding_dim = 5, 7, 6
    config.non_linearity, config.conditional_layer_norm = "gelu_new", True
    config.add_layer_norm_before_adapter, config.add_layer_norm_after_adapter = False, True
    config.efficient_unique_hyper_net, config.device, config.tasks = True, "cpu", TASKS
    config.task_to_embeddings = None
    return config


class Hyperformer(nn.Module):
    """The official modules around the sub-layers of a T5, which runs one task at a time."""

    def __init__(self, model):
        super().__init__()
        config = settings(model)
        self.model, self.task = model, None
        self.task_embedding_controller = TaskEmbeddingController(config)
        self.adapter = MetaLayersAdapterController(config)
        self.nets = nn.ModuleDict()
        for name, stack in [("encoder", model.encoder), ("decoder", model.decoder)]:
            self.nets[name] = AdapterLayersOneHyperNetController(config, len(stack.block))
            for layer, block in enumerate(stack.block):
                block.layer[0].SelfAttention.register_forward_hook(self.hook(name, layer, "self_attention"))
                block.layer[-1].DenseReluDense.register_forward_hook(self.hook(name, layer, "feed_forward"))

    def hook(self, stack, layer, part):
        def after(_module, _inputs, output):
            weights = self.nets[stack](self.task_embedding_controller(self.task), layer)
            adapted = self.adapter(output[0] if isinstance(output, tuple) else output, getattr(weights, part))
            return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

        return after

    def forward(self, inputs):
        """Logits of all rows, each with its own task, and the mean loss of all labels."""
        logits, losses = [], []
        for row, task in enumerate(ROWS):
            self.task = TASKS[task]
            one = self.model(**{name: values[row : row + 1] for name, values in inputs.items()}).logits
            logits.append(one)
            losses.append(nn.functional.cross_entropy(one[0], inputs["labels"][row], ignore_index=-100, reduction="sum"))
        return torch.cat(logits), torch.stack(losses).sum() / (inputs["labels"] != -100).sum()

    def tensors(self):
        """What is trained, by the names of our files. The embeddings of the tasks are one table there."""
        named = {}
        for name, parameter in self.nets.named_parameters():
            stack, path = name.split(".", 1)
            named[f"base_model.model.{stack}.adapter_layers_hyper_net.{path}"] = parameter
        for name, parameter in self.model.named_parameters():
            if "layer_norm" in name:
                named[f"base_model.model.{name}"] = parameter
        return named

    def embeddings(self):
        return [self.task_embedding_controller.task_to_embeddings[task] for task in TASKS]


TABLE = "base_model.model.task_embedding_controller.task_to_embeddings"


def values(model):
    named = {name: parameter.detach().clone() for name, parameter in model.tensors().items()}
    return named | {TABLE: torch.stack([z.detach().clone() for z in model.embeddings()])}


@torch.no_grad()
def randomize(model, gen):
    for name, parameter in model.tensors().items():
        if "layer_norm" in name.removeprefix("base_model.model.").replace("layernorm_hypernet", ""):
            parameter.copy_(parameter + normal(gen, parameter.shape, 0.1))
        elif name.endswith("LayerNorm.weight"):
            parameter.copy_(normal(gen, parameter.shape, 0.2, mean=1.0))
        else:
            parameter.copy_(normal(gen, parameter.shape, 0.2))
    for z in model.embeddings():
        z.copy_(normal(gen, z.shape, 1.0))


def reference(model, inputs):
    """Everything in expected.safetensors; leaves the model trained."""
    trained = [*model.tensors().values(), *model.embeddings()]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    logits, loss = model(inputs)
    loss.backward()
    expected = {"logits": logits.detach(), "loss": loss.detach()}
    expected |= {f"grad.{name}": parameter.grad.clone() for name, parameter in model.tensors().items()}
    expected[f"grad.{TABLE}"] = torch.stack([z.grad.clone() for z in model.embeddings()])
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, loss = model(inputs)
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    expected["losses"] = torch.stack(losses)
    expected |= {f"final.{name}": value for name, value in values(model).items()}
    with torch.no_grad():
        expected["logits_final"] = model(inputs)[0]
    return expected


def main():
    os.chdir(MODELS)
    gen = generator(f"hyperformer-t5/{SEED}")
    inputs = seq_batch(gen, "t5", [11, 8, 7, 3], [6, 4, 5, 2], None)
    model = Hyperformer(AutoModelForSeq2SeqLM.from_pretrained("t5", attn_implementation="eager")).eval()
    randomize(model, gen)
    fresh(FOLDER / "adapter")
    save(FOLDER / "inputs.safetensors", inputs | {"tasks": torch.tensor(ROWS).unsqueeze(1)})
    save(FOLDER / "adapter" / "adapter_model.safetensors", values(model))
    write_json(
        FOLDER / "adapter" / "adapter_config.json",
        {
            "peft_type": "HYPERFORMER",
            "base_model_name_or_path": "t5",
            "task_type": "SEQ_2_SEQ_LM",
            "tasks": len(TASKS),
            "bottleneck": model.nets["encoder"].down_sample_size,
            "task_embedding_dim": 5,
            "task_hidden_dim": 7,
            "projected_task_embedding_dim": 6,
            "activation": "gelu_new",
            "train_layernorm": True,
        },
    )
    double = Hyperformer(AutoModelForSeq2SeqLM.from_pretrained("t5", attn_implementation="eager")).eval()
    double.load_state_dict(model.state_dict())
    expected = reference(model, inputs)
    save(FOLDER / "expected.safetensors", expected)
    with in_float64():
        exact = reference(double.double(), inputs)
    print("losses", " ".join(f"{x:.4f}" for x in expected["losses"].tolist()))
    for prefix in ["logits", "loss", "losses", "logits_final", "grad.", "final."]:
        keys = [k for k in expected if k == prefix or (prefix.endswith(".") and k.startswith(prefix))]
        worst = max(keys, key=lambda k: (expected[k] - exact[k]).abs().max())
        error = (expected[worst] - exact[worst]).abs().max()
        print(f"  {prefix:13} {len(keys):3} tensors, worst float32 error {error:.1e} ({worst})")


if __name__ == "__main__":
    main()
