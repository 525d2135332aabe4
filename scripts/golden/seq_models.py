"""Writes the tiny random T5 and LLaMA models, their inputs, expected outputs and generated ids.

Usage: python scripts/golden/seq_models.py
"""

import json
import logging
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from common import MODELS, fresh, generator, in_float64, normal, read_json, save, write_json
from seq_generation import write_generation, write_sampling
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.t5.modeling_t5 import T5Attention

# It warns that t5-gated is not tied, which is what we want.
logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()

VOCAB = 97
PAD = 0
# (first token or None, last token or None) of an input of each family
ENDS = {"t5": (None, 1), "llama": (1, 2)}

T5 = dict(
    vocab_size=VOCAB,
    d_model=24,
    d_kv=10,
    num_heads=3,
    d_ff=40,
    num_layers=2,
    num_decoder_layers=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    dropout_rate=0.0,
    decoder_start_token_id=0,
    pad_token_id=PAD,
    eos_token_id=1,
)
LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=2,
)
# Head width 6: wavelengths 6.3, 29 and 135, one for each of the three branches of this type.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=3.0)
DYNAMIC = dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)

CASES = {
    "t5": (T5ForConditionalGeneration, T5Config(**T5), [30, 9, 5, 2]),
    "t5-gated": (
        T5ForConditionalGeneration,
        T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        [30, 9, 5, 2],
    ),
    # For PEFT's prefix tuning with an even number of layers; without inputs of its own.
    "t5-even": (
        T5ForConditionalGeneration,
        T5Config(**dict(T5, d_model=12, d_kv=4, d_ff=16, num_layers=4, num_decoder_layers=4)),
        None,
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**dict(LLAMA, num_hidden_layers=3)), [12, 9, 5, 2]),
    "llama-llama3": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA, tie_word_embeddings=True, rope_parameters=LLAMA3),
        [12, 9, 5, 2],
    ),
    "llama-linear": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA, head_dim=8, attention_bias=True, mlp_bias=True, rope_parameters=LINEAR),
        [12, 9, 5, 2],
    ),
    "llama-dynamic": (
        LlamaForCausalLM,
        LlamaConfig(**dict(LLAMA, max_position_embeddings=8), rope_parameters=DYNAMIC),
        [12],
    ),
    "llama-classify": (LlamaForSequenceClassification, LlamaConfig(**LLAMA, num_labels=3), [12, 9, 5, 2]),
}
LABEL_LENGTHS = [7, 4, 9, 3]  # T5
UNLABELLED = [3, 2, 1, 1]  # LLaMA: tokens at the start of a row that have no label


def is_t5(name):
    return name.startswith("t5")


@torch.no_grad()
def randomize(model, gen):
    """Fill every parameter; tied tensors are drawn once.

    T5 does not scale its attention scores, so its queries and keys are smaller; its embeddings are
    larger, since the tied logits are divided by sqrt(d_model), and so are the position biases.
    """
    t5 = model.config.model_type == "t5"
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            value = normal(gen, parameter.shape, 0.2, mean=1.0)
        elif name.endswith("bias"):
            value = normal(gen, parameter.shape, 0.2)
        elif t5 and (name == "shared.weight" or "relative_attention_bias" in name):
            value = normal(gen, parameter.shape, 1.0)
        elif t5 and name.endswith((".q.weight", ".k.weight")):
            value = normal(gen, parameter.shape, 0.15)
        else:
            value = normal(gen, parameter.shape, 0.3)
        parameter.copy_(value)
    head = getattr(model, "lm_head", None)
    if head is not None:  # the end token now and then wins, so that generation has something to stop at
        head.weight[model.config.eos_token_id] *= 1.6


def build(name):
    cls, config, _ = CASES[name]
    config._attn_implementation = "eager"
    gen = generator(name)
    model = cls(config).eval()
    if name == "t5-gated":
        # transformers 5 ties the head whatever the configuration says; files of version 1.1 have their own.
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, config.d_model))
    randomize(model, gen)
    return model, gen


def rows(gen, lengths, ends, fill):
    """Random ids, right-padded with `fill`, each row with its first and last token where it has them."""
    ids = torch.full((len(lengths), max(lengths)), fill, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, VOCAB, (length,), generator=gen)
        if ends[0] is not None:
            ids[row, 0] = ends[0]
        if ends[1] is not None:
            ids[row, length - 1] = ends[1]
    return ids


def mask_of(lengths):
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


def seq_batch(gen, family, lengths, label_lengths=LABEL_LENGTHS, unlabelled=UNLABELLED):
    """A right-padded batch with labels; -100 marks what has no label."""
    ids = rows(gen, lengths, ENDS[family], PAD)
    inputs = {"input_ids": ids, "attention_mask": mask_of(lengths)}
    if family == "t5":
        inputs["labels"] = rows(gen, label_lengths, ENDS["t5"], -100)
    else:
        labels = ids.masked_fill(inputs["attention_mask"] == 0, -100)
        for row, count in enumerate(unlabelled[: len(lengths)]):
            labels[row, :count] = -100
        inputs["labels"] = labels
    return inputs


def write_model(name):
    cls, config, lengths = CASES[name]
    model, gen = build(name)
    folder = fresh(MODELS / name)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if lengths is None:
        print(f"{name}: no inputs")
        return
    inputs = seq_batch(gen, "t5" if is_t5(name) else "llama", lengths)
    if cls is LlamaForSequenceClassification:
        del inputs["labels"]
    save(folder / "inputs.safetensors", inputs)

    hidden = []
    norm = model.decoder.final_layer_norm if is_t5(name) else model.model.norm
    hook = norm.register_forward_hook(lambda module, args, output: hidden.append(output))
    with torch.no_grad():
        output = model(**inputs)
    hook.remove()
    expected = {"logits": output.logits}
    if "labels" in inputs:
        expected |= {"hidden": hidden[0], "loss": output.loss}
    save(folder / "expected.safetensors", expected)

    def difference(source):
        again = cls.from_pretrained(source).eval()  # default attention kernel
        if name == "t5-gated":
            assert again.lm_head.weight is not again.shared.weight
        with torch.no_grad():
            found = again(**inputs)
        if "loss" in expected:
            assert torch.allclose(found.loss, expected["loss"], atol=1e-5), name
        worst = (found.logits - expected["logits"]).abs().max().item()
        assert worst < 1e-4, (name, worst)
        return worst

    reload = difference(folder)
    with torch.no_grad(), in_float64():
        exact = model.double()(**inputs)
    model.float()
    error = (exact.logits - expected["logits"]).abs().max().item()
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(
        f"{name}: logits std {expected['logits'].std():.2f}, reload/sdpa difference {reload:.1e}, "
        f"float32 error {error:.1e}, {size // 1024} KiB"
    )

    # The configuration as older versions wrote it; it must load as the same model.
    old = read_json(folder / "config.json")
    if name == "t5-gated":
        del old["scale_decoder_outputs"]
        old["tie_word_embeddings"] = False
    elif name in ("llama-llama3", "llama-linear", "llama-dynamic"):
        rope = old.pop("rope_parameters")
        old["rope_theta"] = rope.pop("rope_theta")
        if name != "llama-llama3":  # the oldest spelling
            rope = {"type": rope["rope_type"], "factor": rope["factor"]}
        old["rope_scaling"] = rope
    else:
        return
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.40.0"
    write_json(folder / "config-v4.json", old)
    with tempfile.TemporaryDirectory() as other:
        shutil.copy(folder / "config-v4.json", Path(other) / "config.json")
        shutil.copy(folder / "model.safetensors", other)
        difference(other)


def write_buckets():
    """The bucket of every distance (key minus query), for the sizes here and those of real models."""
    distances = torch.arange(-300, 301)
    tables = [
        {
            "num_buckets": buckets,
            "max_distance": far,
            "bidirectional": both,
            "first_distance": distances[0].item(),
            "buckets": T5Attention._relative_position_bucket(distances, both, buckets, far).tolist(),
        }
        for buckets, far in [(8, 20), (32, 128)]
        for both in [True, False]
    ]
    (MODELS / "t5" / "relative_buckets.json").write_text(json.dumps(tables) + "\n")


if __name__ == "__main__":
    for case in CASES:
        write_model(case)
    write_buckets()
    for case in ["t5", "t5-gated", "llama", "llama-llama3"]:
        write_generation(case, CASES[case][0])
    write_sampling(MODELS / "sampling.json")
