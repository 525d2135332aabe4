"""Texts of the tiny models under each setting of `generation_config.json`, what the other sampling filters keep, and the names of all
fields that transformers knows: `<model>/generation_settings.json`, `sampling_more.json`, `generation_fields.json`."""

import json
import re
from inspect import getsource

import torch
from common import MODELS, generator, in_float64
from seq_generation import Gap, Noise
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

BEAMS = {"num_beams": 3}
# Each with max_new_tokens 12, unless it says something of the length.
CASES = [
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.7},
    {"repetition_penalty": 1.6} | BEAMS,
    {"encoder_repetition_penalty": 2.5},
    {"encoder_repetition_penalty": 1.7} | BEAMS,
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 2} | BEAMS,
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 1} | BEAMS,
    {"bad_words_ids": "most"},
    {"bad_words_ids": "most"} | BEAMS,
    {"sequence_bias": "most"},
    {"sequence_bias": "most"} | BEAMS,
    {"suppress_tokens": "most"},
    {"suppress_tokens": "most"} | BEAMS,
    {"begin_suppress_tokens": "first"},
    {"begin_suppress_tokens": "first"} | BEAMS,
    {"forced_bos_token_id": 9},
    {"forced_bos_token_id": 9, "begin_suppress_tokens": "second"},
    {"forced_eos_token_id": 1},
    {"forced_eos_token_id": [3], "max_new_tokens": 4} | BEAMS,
    {"min_new_tokens": 9, "eos_token_id": "most"},
    {"min_new_tokens": 7, "eos_token_id": "most"} | BEAMS,
    {"min_length": 11, "eos_token_id": "most"},
    {"eos_token_id": "two"},
    {"eos_token_id": "two"} | BEAMS,
    {"max_length": 9},
    {"max_length": 10, "early_stopping": "never"} | BEAMS,
    {"exponential_decay_length_penalty": [2, 1.6]},
    {"exponential_decay_length_penalty": [1, 1.4]} | BEAMS,
    {"renormalize_logits": True, "suppress_tokens": "most"} | BEAMS,
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 6, "bad_words_ids": "most"},
    {"repetition_penalty": 1.2, "length_penalty": 0.3, "early_stopping": True, "no_repeat_ngram_size": 3} | BEAMS,
    {"decoder_start_token_id": 8},
]


def fill(settings, plain, prompt):
    """Settings with the tokens that matter: those that the text without them has."""
    most = max(set(plain), key=plain.count)
    second = next(token for token in plain + [5, 6] if token != most)
    after = plain[plain.index(most) + 1] if most in plain[:-1] else second
    tokens = {
        "bad_words_ids": [[second], [most, after]],
        "sequence_bias": [[[second], 1.5], [[most, after], -4.0]],
        "suppress_tokens": [most, prompt[0]],
        "begin_suppress_tokens": [plain[0]],
        "eos_token_id": most,
    }
    filled = {}
    for key, value in settings.items():
        if value in ("most", "first"):
            value = tokens[key]
        elif value == "second":
            value = [plain[1]]
        elif value == "two":
            value = [most, second]
        filled[key] = value
    return filled


def texts(model, prompt, settings, processors=()):
    ids = torch.tensor([prompt])
    # Without a cache: the one that transformers makes is too shallow for a decoder deeper than the encoder.
    config = GenerationConfig(**{"max_new_tokens": 12, "pad_token_id": 0, "use_cache": False} | settings)
    if "max_length" in settings:
        config.max_new_tokens = None
    found = model.generate(ids, generation_config=config, logits_processor=LogitsProcessorList(processors))[0].tolist()
    return found[1 if model.config.is_encoder_decoder else len(prompt) :]


def robust(name, model, double, prompt, settings):
    """The text, if it hangs on no rounding."""
    found = texts(model, prompt, settings)
    with in_float64():
        same = texts(double, prompt, settings) == found
    if "num_beams" in settings:
        noise = all(texts(model, prompt, settings, [Noise(f"{name} {i}")]) == found for i in range(4))
        return found if same and noise else None
    gap = Gap(-1, 0)
    texts(model, prompt, settings, [gap])
    return found if same and gap.least > 2e-3 else None


def cases(name):
    kind = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    model, double = kind.from_pretrained(MODELS / name), kind.from_pretrained(MODELS / name).double()
    vocab, written = model.config.vocab_size, []
    for number, case in enumerate(CASES):
        if name != "t5" and "decoder_start_token_id" in case:
            continue
        for attempt in range(400):
            gen = generator(f"settings {name} {number} {attempt}")
            # A prompt of one token is what `forced_bos_token_id` asks for in a model without an encoder.
            length = 1 if "forced_bos_token_id" in case else 5
            prompt = torch.randint(4, vocab, (length,), generator=gen).tolist()
            base = {key: case[key] for key in ("num_beams",) if key in case}
            plain = texts(model, prompt, base)
            if len(plain) < 2:
                continue
            settings = fill(case, plain, prompt)
            found = robust(f"{name} {number}", model, double, prompt, settings)
            if found is not None and found != plain:
                written.append({"prompt": prompt, "settings": settings, "ids": found})
                break
        else:
            raise SystemExit(f"{name}: no robust prompt for {case}")
    return written


def sampling():
    file = json.loads((MODELS / "sampling.json").read_text())
    logits = torch.tensor([file["logits"]])
    filters = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
        "typical_p": TypicalLogitsWarper,
        "epsilon_cutoff": EpsilonLogitsWarper,
        "eta_cutoff": EtaLogitsWarper,
    }
    kinds = [
        {"min_p": 0.1},
        {"min_p": 0.4, "temperature": 1.6},
        {"typical_p": 0.5},
        {"typical_p": 0.9, "temperature": 0.6},
        {"epsilon_cutoff": 0.03},
        {"epsilon_cutoff": 0.9},
        {"eta_cutoff": 0.05},
        {"eta_cutoff": 0.002, "temperature": 1.3},
        {"top_k": 20, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.8, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
    ]
    found = []
    for kind in kinds:
        scores = logits
        for key, make in filters.items():
            if key in kind:
                scores = make(kind[key])(None, scores)
        kept = torch.isfinite(scores[0]).nonzero().flatten().tolist()
        found.append({"settings": kind, "kept": kept, "probabilities": scores[0].softmax(-1)[kept].tolist()})
    return {"logits": file["logits"], "cases": found}


def fields():
    """Attributes of a configuration, and what its constructor takes beside them."""
    names = {name for name in vars(GenerationConfig()) if not name.startswith("_original")}
    names |= set(re.findall(r"kwargs\.(?:pop|get)\(\s*\"(\w+)\"", getsource(GenerationConfig.__init__)))
    return sorted(names)


if __name__ == "__main__":
    for name in ["t5", "llama"]:
        found = cases(name)
        lines = ",\n".join(json.dumps(case) for case in found)
        (MODELS / name / "generation_settings.json").write_text(f"[\n{lines}\n]\n")
        print(name, len(found))
    (MODELS / "sampling_more.json").write_text(json.dumps(sampling()) + "\n")
    (MODELS / "generation_fields.json").write_text(json.dumps(fields()) + "\n")
