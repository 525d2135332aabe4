"""Writes the first seeds of fuzz/seeds: small files of each kind, good ones, from which cargo-fuzz makes others.

Usage: python scripts/golden/fuzz_seeds.py
"""

import json

import bitsandbytes.functional as F
import numpy as np
import torch
from common import MODELS, REPO, generator, normal
from safetensors.torch import save as saved

SEEDS = REPO / "fuzz" / "seeds"


def put(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())


def bitsandbytes():
    weights = normal(generator("seeds"), (8, 64), 1.0)
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            packed, state = F.quantize_4bit(weights, quant_type=kind, compress_statistics=double)
            parts = {f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
            put("bitsandbytes", f"{kind}{'-double' * double}", saved({"m.weight": packed, **parts}))
    codes, scales, _ = F.int8_vectorwise_quant(weights.half())
    put("bitsandbytes", "int8", saved({"m.weight": codes, "m.SCB": scales, "m.weight_format": torch.tensor(0, dtype=torch.uint8)}))


def words():
    rest = np.random.default_rng(1).integers(0, 256, 64, dtype=np.uint8).tobytes()
    for bits in (2, 3, 4, 8):
        for packing in range(3):
            # Eights of outputs and inputs: whole words of three bits are 32 of each.
            put("words", f"{bits}-{packing}", bytes([bits, packing, 4, 8, 16, 0, 0, 0]) + rest)
    put("words", "ordered", bytes([4, 0, 4, 8, 16, 1, 0, 0]) + bytes([1, 0, 0, 0]) + rest)
    put("words", "short", bytes([4, 0, 4, 8, 16, 0, 2, 255]) + rest)


def blocks():
    sizes = [("Q4_0", 18), ("Q4_1", 20), ("Q5_0", 22), ("Q5_1", 24), ("Q8_0", 34), ("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210)]
    for i, (kind, size) in enumerate(sizes):
        put("gguf_blocks", kind, bytes([i, 2, 2]) + bytes(k % 64 for k in range(2 * size)))


def files():
    for name in ("blocks", "gpt-2", "smollm", "llama-bpe"):
        put("gguf", name, (MODELS / "gguf" / f"{name}.gguf").read_bytes())
    numbers = {"f": torch.ones(2, 3), "h": torch.ones(2).half(), "b": torch.ones(2).bfloat16(), "i": torch.ones(2, dtype=torch.int64)}
    put("safetensors", "types", saved(numbers))
    put("index", "good", {"metadata": {"total_size": 4}, "weight_map": {"a": "one.safetensors"}})
    put("index", "absent", {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}})
    put("index", "outside", {"weight_map": {"a": "../one.safetensors"}})
    settings = REPO / "peft-reparam" / "tests" / "golden" / "lora-llama" / "adapter" / "adapter_config.json"
    put("adapter_config", "lora", settings.read_bytes())
    patterns = json.loads(settings.read_text()) | {"target_modules": ".*(q|v)_proj", "rank_pattern": {"q_proj": 2}, "use_rslora": True}
    put("adapter_config", "patterns", patterns)


def tokenizers():
    vocab = {"[PAD]": 0, "[UNK]": 1, "the": 2, "fox": 3, " ": 4, "t": 5, "h": 6, "e": 7}
    word = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    pairs = {"type": "BPE", "vocab": vocab | {"th": 8, "the": 9}, "merges": [["t", "h"], ["th", "e"]]}
    for name, model in (("words", word), ("pairs", pairs)):
        file = {"version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}}
        put("tokenizer", name, b"\0" + json.dumps(file | {"post_processor": None, "decoder": None, "model": model}).encode())
    piece = lambda text, score, kind: (lambda body: b"\x0a" + bytes([len(body)]) + body)(
        b"\x0a" + bytes([len(text)]) + text + b"\x15" + np.float32(score).tobytes() + b"\x18" + bytes([kind])
    )
    pieces = [(b"<unk>", 0, 2), (b"<s>", 0, 3), (b"</s>", 0, 3), ("\u2581the".encode(), -1, 1), (b"t", -2, 1)]
    put("tokenizer", "pieces", b"\1" + b"".join(piece(*each) for each in pieces))
    put("tokenizer", "vocab", b"\2[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nfox\n##x\n")
    put("tokenizer", "config", b"\3" + json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 16}).encode())


if __name__ == "__main__":
    bitsandbytes(), words(), blocks(), files(), tokenizers()
