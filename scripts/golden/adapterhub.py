"""Writes the reference cases of AdapterHub's files, or checks that the package computes our logits from what we write.

Usage: python scripts/golden/adapterhub.py [CASE ..]                        (after models.py; in an environment of its own)
       python scripts/golden/adapterhub.py check MODEL ADAPTER INPUT LOGITS  (the last two of `peft forward`)
"""

import json
import sys
import warnings
from pathlib import Path

import adapters
import torch
from adapters import (
    AutoAdapterModel,
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    IA3Config,
    LoRAConfig,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from common import MODELS, REPO, batch, fresh, generator, in_float64, normal, save
from safetensors.torch import load_file
from seq_models import seq_batch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

warnings.filterwarnings("ignore")

GOLDEN = REPO / "peft-bench" / "tests" / "golden" / "adapterhub"
NAME = "adapter"
LENGTHS = [11, 8, 7, 3]
# Of T5 and LLaMA, whose logits are many.
WORD_LENGTHS, LABEL_LENGTHS = [6, 3], [4, 2]
# The ends of a case's name and the models that they stand for.
BASES = {
    "-bert": "bert-classify",
    "-t5": "t5",
    "-t5-gated": "t5-gated",
    "-llama": "llama",
    "-llama-classify": "llama-classify",
}



def bn(**settings):
    return BnConfig(**({"mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu"} | settings))


CASES = {
    "seq-bn": SeqBnConfig(reduction_factor=4),
    "seq-bn-bert": SeqBnConfig(reduction_factor=2, non_linearity="gelu"),
    "seq-bn-flex": SeqBnConfig(reduction_factor=4),
    "seq-bn-flex-bert": SeqBnConfig(reduction_factor=4),
    "seq-bn-flex-two-bert": SeqBnConfig(reduction_factor=4),
    "seq-bn-tags-bert": SeqBnConfig(reduction_factor=4),
    "seq-bn-answers": SeqBnConfig(reduction_factor=4),
    "double-seq-bn": DoubleSeqBnConfig(reduction_factor=4),
    "double-seq-bn-bert": DoubleSeqBnConfig(reduction_factor=4.8, non_linearity="relu"),
    "par-bn": ParBnConfig(reduction_factor=2),
    "par-bn-bert": ParBnConfig(reduction_factor=4, mh_adapter=True, scaling=2.5, non_linearity="swish"),
    "compacter": CompacterConfig(reduction_factor=3, non_linearity="gelu_new"),
    "compacter-bert": CompacterPlusPlusConfig(reduction_factor=4, phm_dim=2, phm_rank=3),
    "lora": LoRAConfig(r=3, alpha=5),
    "lora-bert": LoRAConfig(
        r=2, alpha=4, attn_matrices=["q", "k"], intermediate_lora=True, output_lora=True, leave_out=[0], dropout=0.1
    ),
    "ia3": IA3Config(),
    "ia3-bert": IA3Config(attn_matrices=["v"], output_lora=True),
    "prefix": PrefixTuningConfig(prefix_length=4, bottleneck_size=7),
    "prefix-flat": PrefixTuningConfig(prefix_length=4, flat=True),
    "prefix-flat-bert": PrefixTuningConfig(prefix_length=5, flat=True),
    "seq-bn-t5": SeqBnConfig(reduction_factor=6),
    "double-seq-bn-t5": DoubleSeqBnConfig(reduction_factor=8),
    "par-bn-t5": ParBnConfig(reduction_factor=8),
    "lora-t5-gated": LoRAConfig(
        r=2, alpha=4, attn_matrices=["q", "k"], intermediate_lora=True, output_lora=True, leave_out=[1, 3]
    ),
    "ia3-t5": IA3Config(),
    "seq-bn-llama": SeqBnConfig(reduction_factor=6),
    "seq-bn-llama-classify": SeqBnConfig(reduction_factor=8),
    "double-seq-bn-llama": DoubleSeqBnConfig(reduction_factor=8),
    "compacter-llama": CompacterConfig(reduction_factor=4, phm_dim=2, phm_rank=2),
    "par-bn-llama": ParBnConfig(reduction_factor=8, scaling=2.0),
    "lora-llama": LoRAConfig(r=2, alpha=3, intermediate_lora=True, leave_out=[0]),
    "ia3-llama": IA3Config(output_lora=True),
    "prefix-flat-llama": PrefixTuningConfig(prefix_length=3, flat=True),
    "bn-norms": bn(ln_before=True, ln_after=True, adapter_residual_before_ln=True, original_ln_before=True),
    "bn-norm-bert": bn(ln_after=True, mh_adapter=True, non_linearity="gelu"),
    "bn-channel": bn(scaling="channel", use_gating=True, original_ln_before=True),
    "bn-learned-bert": bn(scaling="learned", mh_adapter=True, leave_out=[1], non_linearity="swish"),
    "bn-bare": bn(original_ln_after=False, mh_adapter=True),
    "bn-bare-bert": bn(original_ln_after=False, original_ln_before=True),
    "bn-post-add-bert": bn(residual_before_ln="post_add", original_ln_before=True),
    "bn-residual": bn(residual_before_ln=False, original_ln_before=True, mh_adapter=True),
    "bn-layers": bn(reduction_factor={"0": 2, "2": 4.8, "default": 6}, original_ln_before=True),
    "bn-layers-t5": bn(reduction_factor={"0": 2, "4": 3, "default": 6}, mh_adapter=True, cross_adapter=True, leave_out=[1]),
    "bn-attention-bert": bn(mh_adapter=True, output_adapter=False, scaling=0.5, dropout=0.1),
    "bn-parallel": bn(is_parallel=True, scaling="learned", ln_before=True, ln_after=True, use_gating=True),
    "bn-parallel-bert": bn(is_parallel=True, original_ln_after=False, mh_adapter=True, scaling="channel"),
    "bn-llama": bn(original_ln_before=True, residual_before_ln=False, mh_adapter=True, ln_after=True),
    "bn-bare-llama": bn(original_ln_after=False, mh_adapter=True),
    "bn-invertible": SeqBnInvConfig(reduction_factor=4),
    "bn-invertible-bert": SeqBnInvConfig(reduction_factor=4, non_linearity="gelu", inv_adapter_reduction_factor=3),
    "bn-invertible-t5": SeqBnInvConfig(reduction_factor=4, cross_adapter=True),
    "bn-invertible-llama": SeqBnInvConfig(reduction_factor=4),
}
# Those of T5 and LLaMA that are saved with the model's table for words.
WITH_TABLE = ["lora-t5-gated", "par-bn-t5", "lora-llama"]


def opening(model):
    """How a model is opened. With another attention the package masks a LLaMA's prefix away; whether a T5's tables are tied,
    transformers 4 reads in a configuration of its own."""
    settings = {"attn_implementation": "eager"} if AutoConfig.from_pretrained(model).model_type == "llama" else {}
    own = Path(model) / "config-v4.json"
    return settings | ({"config": AutoConfig.from_pretrained(own)} if own.exists() else {})


def logits_of(output):
    """Of answers the beginning and the end of each token."""
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits


def static_class(base):
    if base.startswith("t5"):
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM if base == "llama" else AutoModelForSequenceClassification


@torch.no_grad()
def randomize(model, case):
    gen = generator(f"adapterhub {case}")
    words = hasattr(model, "lm_head")
    for name, parameter in model.named_parameters():
        own = f".{NAME}." in name
        if own or not words and not name.startswith(model.base_model_prefix):
            # Factors are near 1; prefixes of about the size of keys and values.
            ones = own and name.endswith("lora_B") and parameter.shape[1] == 1
            std = 1.0 if name.endswith("wte.weight") or parameter.dim() == 1 and name.endswith("control_trans") else 0.3
            parameter.copy_(normal(gen, parameter.shape, std, mean=1.0 if ones else 0.0))


def case_model(base, case, config):
    if "tags" in case or "answers" in case:
        model = AutoAdapterModel.from_pretrained(MODELS / base)
        if "tags" in case:
            model.add_tagging_head(NAME, num_labels=3, id2label={0: "O", 1: "B-X", 2: "I-X"})
        else:
            model.add_qa_head(NAME)
        model.active_head = NAME
    elif "flex" in case:
        model = AutoAdapterModel.from_pretrained(MODELS / base)
        bert = base.startswith("bert")
        one = bert and "two" not in case
        settings = {"layers": 1, "activation_function": None, "use_pooler": True} if one else {}
        labels = ["no", "yes", "perhaps"][: model.config.num_labels]
        if "default" in model.heads:
            model.delete_head("default")
        model.add_classification_head(NAME, num_labels=len(labels), id2label=dict(enumerate(labels)), **settings)
        model.active_head = NAME
    else:
        model = static_class(base).from_pretrained(MODELS / base, **opening(MODELS / base))
        adapters.init(model)
    model.add_adapter(NAME, config=config, set_active=True)
    model.config.name_or_path = base
    return model.eval()


@torch.no_grad()
def write(case, config):
    base = next((base for end, base in BASES.items() if case.endswith(end)), "roberta-classify")
    family, bert = base.split("-")[0], case.endswith("-bert")
    folder = fresh(GOLDEN / case)
    model = case_model(base, case, config)
    randomize(model, case)
    # The package has no safetensors for prefixes, whose tensor it writes once for each layer.
    # Nor for a normalization in front of a bottleneck, which it writes twice.
    safe = not bert and "prefix" not in case and not getattr(config, "ln_before", False)
    (folder / "adapter").mkdir()
    with_head = static_class(base) is AutoModelForSequenceClassification or case in WITH_TABLE
    model.save_adapter(folder / "adapter", NAME, with_head=with_head, use_safetensors=safe)
    for path in (folder / "adapter").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + "\n")
    gen = generator(f"adapterhub {case} inputs")
    if family in ("t5", "llama"):
        inputs = seq_batch(gen, family, WORD_LENGTHS, LABEL_LENGTHS, [0, 0])
        if family == "llama":
            del inputs["labels"]
    else:
        inputs = batch(gen, family, LENGTHS)
    save(folder / "inputs.safetensors", inputs)
    logits = logits_of(model(**inputs))
    save(folder / "expected.safetensors", {"logits": logits})
    with in_float64():
        double = logits_of(model.double()(**inputs))
    print(f"{case}: off float64 by {float((logits - double).abs().max()):.1e}")


@torch.no_grad()
def check(model, adapter, inputs, logits):
    """The largest difference between the package's logits and ours, with the head that is there: transformers' own, also as a
    flexible one, or one that is flexible itself, or a language model's."""
    ours = load_file(logits)
    head = Path(adapter) / "head_config.json"
    head = json.loads(head.read_text())["model_class"] if head.exists() else None
    family = AutoConfig.from_pretrained(model).model_type
    if head is None:
        kinds = [AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM]
    elif head.endswith("AdapterModel"):
        kinds = [AutoAdapterModel]
    else:
        kinds = [AutoModelForSequenceClassification] + [AutoAdapterModel] * (family != "llama")
    for kind in kinds:
        theirs = kind.from_pretrained(model, **opening(model))
        if kind is not AutoAdapterModel:
            adapters.init(theirs)
            # What was in the checkpoint must not be what is compared.
            for name, parameter in theirs.named_parameters():
                if name.startswith(("classifier.", "score.")):
                    parameter.zero_()
        info = {}
        name = theirs.load_adapter(adapter, load_as="checked", set_active=True, use_safetensors=True, loading_info=info)
        theirs.eval()
        if info.get("unexpected_keys"):
            sys.exit(f"{adapter}: the package does not use {info['unexpected_keys']}")
        worst = 0.0
        for i, line in enumerate(open(inputs)):
            row = {k: torch.tensor([v]) for k, v in json.loads(line).items() if k != "label"}
            worst = max(worst, float((logits_of(theirs(**row)).flatten() - ours[f"logits.{i}"].flatten()).abs().max()))
        print(f"{adapter}: {kind.__name__}, {name}: largest difference {worst:.1e}")
        if worst > 1e-4:
            sys.exit("the logits differ")


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(*sys.argv[2:])
    else:
        for case in sys.argv[1:] or CASES:
            write(case, CASES[case])
