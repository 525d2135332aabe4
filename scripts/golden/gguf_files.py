"""Writes peft-core/tests/golden/gguf with the Python package gguf, and what it and transformers make of the files.

Not called gguf.py: that name would hide the package from transformers.

Usage: python scripts/golden/gguf_files.py
"""

import json

import gguf
import numpy as np
import torch
from common import MODELS, fresh, generator, normal, save
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

FOLDER = MODELS / "gguf"
TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K".split()
HIDDEN, INNER, HEADS, KEY_HEADS, LAYERS = 32, 32, 4, 2, 2

CORPUS = """
2024 2024 1234 1234567
The quick brown fox jumps over the lazy dog. It's the dog's turn, they're told; we'll see what the fox had done.
def main(args): return [x for x in args if x != 0]  # comment
In 2024 there were 365 days, 12 months and 1,234,567 things to do.
<|im_start|>user\nWhat is this?<|im_end|>\n the the then there these in on an and
Größe, naïve café, élève; что это такое? 日本語の文字 🙂🙃
""" * 3

TEXTS = [
    "", " ", "  ", "\n", "a", " a", "  a", "a ", "the", " the", "The dog.", "the  dog   jumps", "It's we'll THEY'RE",
    "fox\nfox", "fox \n fox", "\tdef main(args):\n\t\treturn x\n", "x != 0", "in 2024", "1234567", "1,234,567.89", "a1b22c333",
    "x² + ½ = Ⅷ ٣٤", "Größe", "naïve café", "что это", "日本語の文字", "🙂🙃👨‍👩‍👧", "e\u0301 \u00e9", "\u00a0nbsp\u2003em", "▁under▁",
    "\u0000\u0001\x7f", "<s>", "</s>the", "the<s> dog", "the</s>dog </s> fox", "<unk>", "<0x41>", "<|im_start|>user\nthe<|im_end|>",
    "<|im_start|> <|im_start|>", "<think> the </think>", "<|im_start", "a<think>b", "  <think>  the",
    "the quick brown fox jumps over the lazy dog " * 3, "!?!?...---", "don't can't I'd you've", "\r\n\r\n x\r\n", "     indented",
    "trailing   ", "thethethethe", "that", "ﬁ ǅ ß İ", "مرحبا שלום", "한국어", "\U0001F1E9\U0001F1EA",
]  # fmt: skip


def random_blocks(kind, rows, blocks):
    """Random bytes, whose scales (f16 fields) are drawn so that all values are finite."""
    elements, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    gen = generator(f"gguf {kind}")
    if elements == 1:
        values = normal(gen, (rows, blocks), 1.0).numpy()
        return gguf.quantize(values, Type[kind]).view(np.uint8).reshape(rows, -1)
    data = torch.randint(0, 256, (rows, blocks, size), generator=gen, dtype=torch.uint8).numpy()
    scales = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}.get(kind, [0])
    for at in scales:
        data[:, :, at : at + 2] = normal(gen, (rows, blocks, 1), 0.02).half().numpy().view(np.uint8)
    return data.reshape(rows, -1)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def blocks():
    writer = gguf.GGUFWriter(FOLDER / "blocks.gguf", "none")
    expected = {}
    for kind in TYPES:
        elements = gguf.GGML_QUANT_SIZES[Type[kind]][0]
        data = random_blocks(kind, *{1: (3, 5), 32: (3, 2), 256: (2, 1)}[elements])
        writer.add_tensor(kind, data, raw_dtype=Type[kind])
        values = gguf.dequantize(data, Type[kind])
        assert np.isfinite(values).all() and values.std() > 0
        expected[kind] = torch.from_numpy(values.copy())
    finish(writer)
    save(FOLDER / "blocks.safetensors", expected)


def interleave(weight, heads):
    """The rows of each head in the order of GGUF: one of the first half, one of the second, and so on."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def pieces():
    """A vocabulary like SentencePiece's: merges of characters, of which the file has the scores alone, every forty the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", True)
    tokenizer.train_from_iterator([CORPUS], trainers.BpeTrainer(vocab_size=130, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    merged = ["".join(pair) for pair in model["merges"]]
    letters = sorted(set(model["vocab"]) - set(merged))
    merged = list(dict.fromkeys(merged))
    special, byte = ["<unk>", "<s>", "</s>"], [f"<0x{i:02X}>" for i in range(256)]
    tokens = special + byte + merged + letters + ["<think>"]
    scores = [0.0] * 259 + [-float(i // 40) for i in range(len(merged) + len(letters))] + [0.0]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(letters)) + [4]
    return tokens, scores, kinds


def llama():
    gen = generator("gguf llama")
    tokens, scores, kinds = pieces()
    writer = gguf.GGUFWriter(FOLDER / "llama.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    expected = {}

    def add(name, hf, shape, kind, heads=None, mean=0.0):
        values = normal(gen, shape, 0.2, mean).numpy()
        quantized = gguf.quantize(interleave(values, heads) if heads else values, Type[kind])
        writer.add_tensor(name, quantized, raw_dtype=Type[kind])
        if heads:
            expected[hf] = torch.from_numpy(gguf.dequantize(gguf.quantize(values, Type[kind]), Type[kind]).copy())

    add("token_embd.weight", "model.embed_tokens.weight", (len(tokens), HIDDEN), "Q8_0")
    keys = KEY_HEADS * HIDDEN // HEADS
    for i, kind in enumerate(["Q8_0", "Q5_1"]):
        old, new = f"blk.{i}.", f"model.layers.{i}."
        add(old + "attn_norm.weight", new + "input_layernorm.weight", (HIDDEN,), "F32", mean=1.0)
        add(old + "attn_q.weight", new + "self_attn.q_proj.weight", (HIDDEN, HIDDEN), kind, HEADS)
        add(old + "attn_k.weight", new + "self_attn.k_proj.weight", (keys, HIDDEN), kind, KEY_HEADS)
        add(old + "attn_v.weight", new + "self_attn.v_proj.weight", (keys, HIDDEN), "Q5_0")
        add(old + "attn_output.weight", new + "self_attn.o_proj.weight", (HIDDEN, HIDDEN), "Q4_1")
        add(old + "ffn_norm.weight", new + "post_attention_layernorm.weight", (HIDDEN,), "F32", mean=1.0)
        add(old + "ffn_gate.weight", new + "mlp.gate_proj.weight", (INNER, HIDDEN), "Q4_0")
        add(old + "ffn_up.weight", new + "mlp.up_proj.weight", (INNER, HIDDEN), "F16")
        add(old + "ffn_down.weight", new + "mlp.down_proj.weight", (HIDDEN, INNER), "BF16")
    add("output_norm.weight", "model.norm.weight", (HIDDEN,), "F32", mean=1.0)
    finish(writer)

    model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file="llama.gguf", dtype=torch.float32).eval()
    state = model.state_dict()
    for name, values in expected.items():
        assert torch.equal(state[name], values), name
    expected = {name: values for name, values in expected.items() if "layers.1." in name}
    ids = torch.randint(0, len(tokens), (2, 9), generator=gen)
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    # `hidden` is the last one, behind the final norm.
    expected |= {"input_ids": ids, "logits": out.logits[:, -1], "hidden": out.hidden_states[-1]}
    save(FOLDER / "llama.safetensors", expected)


def byte_level(pre):
    """A file of metadata alone: merges of bytes, those of digits among them, whatever way it cuts texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([CORPUS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = special + sorted(model["vocab"], key=model["vocab"].get) + ["<think>"]
    writer = gguf.GGUFWriter(FOLDER / f"{pre}.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(special) + [1] * len(model["vocab"]) + [4])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if pre == "llama-bpe":
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)
    finish(writer)


def encode(name):
    """What transformers makes of a text, special tokens included."""
    if name == "llama":
        tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file="llama.gguf")
        return lambda text: tokenizer(text)["input_ids"]
    architecture, parts, _ = get_gguf_tokenizer(str(FOLDER / f"{name}.gguf"))
    backend, _ = convert_gguf_tokenizer(architecture, parts)
    if name == "smollm":
        # transformers leaves out that every single digit is cut off first, as in llama.cpp.
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), backend.pre_tokenizer])
    around = ([1], [2]) if name == "llama-bpe" else ([], [])
    return lambda text: around[0] + backend.encode(text, add_special_tokens=False).ids + around[1]


def main():
    fresh(FOLDER)
    blocks()
    llama()
    cases = {"llama": None}
    for pre in ["gpt-2", "smollm", "llama-bpe"]:
        byte_level(pre)
        cases[pre] = None
    for name in cases:
        ids = encode(name)
        cases[name] = [ids(text) for text in TEXTS]
    cases["texts"] = TEXTS
    (FOLDER / "tokenizers.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")
    sizes = {path.name: path.stat().st_size for path in sorted(FOLDER.iterdir())}
    print(sizes, sum(sizes.values()))


if __name__ == "__main__":
    main()
