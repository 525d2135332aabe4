"""Writes setups of AdapterHub's package with its logits: peft-bench/tests/golden/adapterhub-setups/<case>/.

Usage: python scripts/golden/adapterhub_setups.py   (after models.py; in the environment of adapterhub.py)

`setup/` as `save_adapter_setup` writes it, but for `fusion-apart`, whose fusion and adapters are saved one by one; `inputs.safetensors` and
`expected.safetensors` with the `logits`. The head is the model's.
"""

import json
import warnings

import adapters
import torch
from adapters import DoubleSeqBnConfig, LoRAConfig, ParBnConfig, SeqBnConfig
from adapters.composition import Average, BatchSplit, Fuse, Parallel, Split, Stack
from common import MODELS, REPO, batch, fresh, generator, normal, save
from transformers import AutoModelForSequenceClassification

warnings.filterwarnings("ignore")

GOLDEN = REPO / "peft-bench" / "tests" / "golden" / "adapterhub-setups"
SEQ, DOUBLE, PAR = SeqBnConfig(reduction_factor=6), DoubleSeqBnConfig(reduction_factor=6), ParBnConfig(reduction_factor=6)
LORA = LoRAConfig(r=2, alpha=3)
ROWS, SAME = [11, 8, 3], [8, 8]
CASES = {
    "stack": ("bert", SEQ, Stack("a", "b"), ROWS),
    "stack-double": ("roberta", DOUBLE, Stack("a", "b", "c"), ROWS),
    "stack-lora": ("bert", LORA, Stack("a", "b"), ROWS),
    "fuse": ("bert", SEQ, Fuse("a", "b", "c"), ROWS),
    "fuse-static": ("roberta", DOUBLE, Fuse("a", "b"), ROWS),
    "fusion-apart": ("roberta", SEQ, Fuse("a", "b"), ROWS),
    "stack-fuse": ("bert", SEQ, Stack("a", Fuse("b", "c")), ROWS),
    "split": ("bert", SEQ, Split("a", "b", splits=[5, 3]), SAME),
    "split-parallel": ("roberta", PAR, Split("a", "b", "c", splits=[1, 3, 4]), SAME),
    "batch-split": ("bert", SEQ, BatchSplit("a", "b", batch_sizes=[2, 1]), ROWS),
    "batch-split-lora": ("roberta", LORA, BatchSplit("a", "b", batch_sizes=[1, 2]), ROWS),
    "stack-batch-split": ("bert", DOUBLE, Stack("a", BatchSplit("b", "c", batch_sizes=[1, 2])), ROWS),
    "parallel": ("bert", SEQ, Parallel("a", "b"), ROWS),
    "parallel-stack": ("roberta", DOUBLE, Parallel(Stack("a", "b"), "c"), ROWS),
    "average": ("bert", SEQ, Average("a", "b"), ROWS),
    "average-double": ("roberta", DOUBLE, Average("a", "b", "c", weights=[3, 1, 2]), ROWS),
    "average-parallel": ("bert", PAR, Average("a", "b", weights=[0.7, 0.3]), ROWS),
    "average-lora": ("bert", LORA, Average("a", "b", weights=[0.7, 0.3]), ROWS),
    "stack-average": ("roberta", SEQ, Stack("a", Average("b", "c")), ROWS),
    # Refused: the package normalizes twice.
    "average-stack": ("bert", SEQ, Average(Stack("a", "b"), "c"), ROWS),
}


def fusions(setup):
    return [one for one in [setup, *setup.children] if isinstance(one, Fuse)]


@torch.no_grad()
def write(case):
    kind, config, setup, lengths = CASES[case]
    base, folder = f"{kind}-classify", fresh(GOLDEN / case)
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / base, attn_implementation="eager").eval()
    model.config.name_or_path = base
    adapters.init(model)
    for name in sorted(setup.flatten()):
        model.add_adapter(name, config=config)
    for one in fusions(setup):
        model.add_adapter_fusion(one, "static" if "static" in case else "dynamic")
    model.eval()
    gen = generator(f"setup {case}")
    for name, parameter in model.named_parameters():
        if any(part in name for part in [".adapters.", ".loras.", "adapter_fusion_layer"]):
            parameter.copy_(normal(gen, parameter.shape, 0.3))
    safe = kind == "roberta"
    if case == "fusion-apart":
        (folder / "setup").mkdir()
        for name in setup.flatten():
            model.save_adapter(folder / "setup" / name, name, use_safetensors=safe)
        model.save_adapter_fusion(folder / "setup" / "both", setup, use_safetensors=safe)
    else:
        model.save_adapter_setup(folder / "setup", setup, use_safetensors=safe)
    for path in (folder / "setup").rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + "\n")
    inputs = batch(gen, kind, lengths)
    save(folder / "inputs.safetensors", inputs)
    model.set_active_adapters(setup)
    save(folder / "expected.safetensors", {"logits": model(**inputs).logits})


if __name__ == "__main__":
    for case in CASES:
        write(case)
