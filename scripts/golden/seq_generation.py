"""Generated ids of the tiny models by transformers, and what its sampling filters keep."""

import json

import torch
from common import MODELS, generator, in_float64, normal
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

PAD = 0
GREEDY = {"max_new_tokens": 12, "num_beams": 1}
# name, lengths of the prompts, settings that get the same prompts, least number of different results
GROUPS = [
    ("greedy", [9, 4, 6, 2], [GREEDY, GREEDY | {"max_new_tokens": 3}], 2),
    ("greedy one", [7], [GREEDY], 1),
    ("greedy long", [3, 8], [GREEDY | {"max_new_tokens": 26}], 1),
    (
        "beams",
        [8, 3, 5],
        [
            {"max_new_tokens": 12, "num_beams": 4, "length_penalty": penalty, "early_stopping": early}
            for penalty in [0.6, 1.0, 2.0]
            for early in [True, False, "never"]
        ],
        4,
    ),
    (
        "beams short",
        [6],
        [
            {"max_new_tokens": most, "num_beams": 4, "length_penalty": 1.0, "early_stopping": False}
            for most in [1, 3, 6]
        ],
        3,
    ),
    (
        "two beams",
        [2, 10, 4, 4],
        [{"max_new_tokens": 8, "num_beams": 2, "length_penalty": 1.0, "early_stopping": early} for early in [True, False]],
        1,
    ),
]
# Where the search for robust prompts begins: here it also ends.
PICKS = {
    "t5": {"greedy": 21, "greedy one": 7, "greedy long": 10, "beams": 2, "beams short": 5, "two beams": 0},
    "t5-gated": {"greedy": 12, "greedy one": 16, "greedy long": 7, "beams": 191, "beams short": 3, "two beams": 4},
    "llama": {"greedy": 3, "greedy one": 0, "greedy long": 3, "beams": 240, "beams short": 20, "two beams": 0},
    "llama-llama3": {"greedy": 2, "greedy one": 4, "greedy long": 0, "beams": 44, "beams short": 2, "two beams": 0},
}
NOISES = 12


class Noise(LogitsProcessor):
    """Moves every (log-)probability by up to half of `width`."""

    def __init__(self, seed, width=1e-3):
        self.gen = generator(f"noise {seed}")
        self.width = width

    def __call__(self, input_ids, scores):
        return scores + self.width * (torch.rand(scores.shape, generator=self.gen) - 0.5).to(scores)


class Gap(LogitsProcessor):
    """The smallest distance between the two best logits of a step, over the rows that still run."""

    def __init__(self, eos, prompt):
        self.eos, self.prompt, self.least = eos, prompt, float("inf")

    def __call__(self, input_ids, scores):
        running = ~(input_ids[:, self.prompt :] == self.eos).any(dim=1)
        best = scores[running].topk(2, dim=-1).values
        if len(best):
            self.least = min(self.least, (best[:, 0] - best[:, 1]).min().item())
        return scores


def pad_batch(prompts, left):
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        where = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, where] = torch.tensor(prompt)
        mask[row, where] = 1
    return ids, mask


def generate(model, prompts, settings, cache=True, processors=()):
    """The new ids of every row up to and including the end token, and the scores of a beam search."""
    t5 = model.config.is_encoder_decoder
    ids, mask = pad_batch(prompts, left=not t5)
    # By itself `generate` makes a cache with as many layers as the encoder has, too few for our decoder.
    given = {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())} if t5 and cache else {}
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            use_cache=cache,
            logits_processor=LogitsProcessorList(processors),
            return_dict_in_generate=True,
            output_scores=True,
            **given,
            **settings,
        )
    eos = model.config.eos_token_id
    new = [row[1 if t5 else ids.shape[1] :].tolist() for row in output.sequences]
    new = [row[: row.index(eos) + 1] if eos in row else row[: settings["max_new_tokens"]] for row in new]
    scores = output.sequences_scores.tolist() if settings["num_beams"] > 1 else None
    return new, scores


def interesting(variants, results, eos, different):
    """Whether the results show something: an end in the middle, a cut, an effect of the settings."""
    if len({json.dumps(ids) for ids in results}) < different:
        return False
    if not any(row[-1] == eos and len(row) > 2 for ids in results for row in ids):
        return False
    if len(results[0]) > 1 and not any(row[-1] != eos for row in results[-1]):
        return False
    if variants[0]["num_beams"] == 1 and len(results[0]) > 1:
        return any(row[-1] != eos for row in results[0])
    if len(variants) == 9:  # penalty by penalty: True, False, "never"
        by_penalty = [results[i : i + 3] for i in (0, 3, 6)]
        return any(a != b for a, b, _ in by_penalty) and any(b != c for _, b, c in by_penalty)
    return True


def trial(model, double, prompts, variants, different):
    """The cases of one group, or None if these prompts are not robust or not interesting."""
    eos = model.config.eos_token_id
    t5 = model.config.is_encoder_decoder
    found = [generate(model, prompts, settings) for settings in variants]
    if not interesting(variants, [ids for ids, _ in found], eos, different):
        return None
    cases = []
    for settings, (ids, scores) in zip(variants, found):
        if settings["num_beams"] == 1:
            gap = Gap(eos, 1 if t5 else max(map(len, prompts)))
            with in_float64():
                exact, _ = generate(double, prompts, settings, processors=[gap])
            if gap.least < 5e-3:
                return None
        else:
            for seed in range(NOISES):
                if generate(model, prompts, settings, processors=[Noise(seed)])[0] != ids:
                    return None
            with in_float64():
                exact, exact_scores = generate(double, prompts, settings)
            assert max(abs(a - b) for a, b in zip(scores, exact_scores)) < 1e-5
        assert exact == ids
        assert generate(model, prompts, settings, cache=False)[0] == ids
        # Neither the padding nor the other rows of a batch change a row.
        assert [generate(model, [prompt], settings)[0][0] for prompt in prompts] == ids
        case = {"input_ids": prompts, "settings": settings | {"eos_token_id": eos, "pad_token_id": PAD}, "ids": ids}
        if scores is not None:
            case["scores"] = [round(score, 6) for score in scores]
        cases.append(case)
    return cases


def write_generation(name, cls):
    folder = MODELS / name
    model = cls.from_pretrained(folder, attn_implementation="eager").eval()
    double = cls.from_pretrained(folder, attn_implementation="eager").double().eval()
    t5 = model.config.is_encoder_decoder
    cases = []
    for group, lengths, variants, different in GROUPS:
        for seed in range(PICKS[name][group], 400):
            gen = generator(f"{name} {group} {seed}")
            prompts = [torch.randint(4, 97, (length,), generator=gen).tolist() for length in lengths]
            for prompt in prompts:
                prompt[-1 if t5 else 0] = 1  # T5's end of text, LLaMA's beginning
            found = trial(model, double, prompts, variants, different)
            if found is not None:
                break
        else:
            raise AssertionError(f"{name}: no prompts for {group}")
        print(f"  {name}: {group}: attempt {seed}, lengths", *[[len(row) for row in case["ids"]] for case in found])
        cases += found
    lines = ",\n".join(json.dumps(case, sort_keys=True) for case in cases)
    (folder / "generation.json").write_text(f"[\n{lines}\n]\n")


def write_sampling(path):
    logits = normal(generator("sampling"), (97,), 2.0)
    filters = {"temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper}
    values = {"temperature": 0.7, "top_k": 10, "top_p": 0.8}
    cases = []
    for names in [[], ["temperature"], ["top_k"], ["top_p"], ["temperature", "top_k"], ["temperature", "top_p"],
                  ["top_k", "top_p"], ["temperature", "top_k", "top_p"]]:
        def filtered(scores):
            for name in names:  # the order in which transformers applies them
                scores = filters[name](values[name])(None, scores)
            return scores.softmax(-1)[0]

        probabilities = filtered(logits[None])
        exact = filtered(logits[None].double())
        kept = probabilities.nonzero()[:, 0]
        assert torch.equal(kept, exact.nonzero()[:, 0])
        assert (probabilities - exact).abs().max() < 1e-6
        for shift in [-1e-3, 1e-3]:  # not at the edge of keeping one more or one less
            if "top_p" in names:
                moved = {**values, "top_p": values["top_p"] + shift}
                scores = logits[None]
                for name in names:
                    scores = filters[name](moved[name])(None, scores)
                assert torch.equal(kept, scores[0].softmax(-1).nonzero()[:, 0])
        cases.append({
            "settings": {name: values[name] for name in names},
            "kept": kept.tolist(),
            "probabilities": [round(p, 9) for p in exact[kept].tolist()],
        })
        print("  sampling:", names, len(kept), "kept")
    lines = ",\n".join(json.dumps(case) for case in cases)
    numbers = json.dumps([float(f"{x:.9g}") for x in logits.tolist()])
    path.write_text(f'{{"logits": {numbers},\n"cases": [\n{lines}\n]}}\n')
