"""Checks the statements the README makes about T5, LLaMA and PEFT, on the golden cases.

Usage: python scripts/golden/seq_facts.py   (after seq_models.py and methods.py)
"""

import os

import torch
import torch.nn.functional as F
import transformers
from common import MODELS, read_json
from methods import ADDITIVE, LLAMA, REPARAM, T5, T5_EVEN, base_model
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
TOKENS = 4  # virtual tokens of the prompt, prefix and P-tuning cases


def case(folder, base):
    """The model with its adapter, its tensors, and the batch."""
    model = PeftModel.from_pretrained(base_model(base, attn_implementation="eager"), folder / "adapter").eval()
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    return model, tensors, load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")


def watch(seen, name, module):
    module.register_forward_hook(lambda m, args, kw, out: seen.update({name: (args, kw, out)}), with_kwargs=True)


def with_tokens(mask, count=TOKENS):
    return torch.cat([torch.ones(mask.shape[0], count, dtype=mask.dtype), mask], 1)


def prompt_t5(name):
    model, tensors, inputs, expected = case(ADDITIVE / name, T5)
    rows = tensors["prompt_embeddings"]
    assert rows.shape == (2 * TOKENS, 24)
    base = model.get_base_model()
    words = torch.cat([rows[:TOKENS].expand(4, -1, -1), base.shared(inputs["input_ids"])], 1)
    output = base(inputs_embeds=words, attention_mask=with_tokens(inputs["attention_mask"]), labels=inputs["labels"])
    assert torch.allclose(output.logits, expected["logits"], atol=1e-5)
    assert torch.allclose(output.loss, expected["loss"], atol=1e-5)
    # The decoder gets no virtual tokens: the other rows are never read.
    gradient = expected["grad.prompt_embeddings" if name == "prompt-t5" else "grad.embedding.weight"]
    assert gradient[:TOKENS].abs().min() > 0 and not gradient[TOKENS:].any()
    if name == "prompt-t5":  # without a gradient AdamW only decays
        decayed = rows[TOKENS:] * (1 - 1e-2 * 0.01) ** 10
        assert torch.allclose(expected["final.prompt_embeddings"][TOKENS:], decayed, atol=1e-6)


def prompt_llama(name):
    model, tensors, inputs, expected = case(ADDITIVE / name, LLAMA)
    rows, ids = tensors["prompt_embeddings"], inputs["input_ids"]
    assert rows.shape == (TOKENS, 24)
    base = model.get_base_model()
    words = torch.cat([rows.expand(4, -1, -1), base.model.embed_tokens(ids)], 1)
    seen = {}
    watch(seen, "rotary", base.model.rotary_emb)
    logits = base(inputs_embeds=words, attention_mask=with_tokens(inputs["attention_mask"])).logits
    assert torch.equal(seen["rotary"][1]["position_ids"][0], torch.arange(TOKENS + ids.shape[1]))
    assert logits.shape[1] == TOKENS + ids.shape[1]  # the rows of the virtual tokens stay
    assert torch.allclose(logits, expected["logits"], atol=1e-5)
    loss = F.cross_entropy(logits[:, TOKENS:-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    assert torch.allclose(loss, expected["loss"], atol=1e-5)


def p_tuning(name):
    folder = ADDITIVE / name
    weights = load_file(folder / "encoder.safetensors")
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    x = weights["embedding.weight"]
    if name == "p-tuning-lstm":
        lstm = torch.nn.LSTM(24, 7, 2, bidirectional=True, batch_first=True)
        lstm.load_state_dict({k.removeprefix("lstm_head."): v for k, v in weights.items() if "lstm_head" in k})
        x = lstm(x[None])[0][0]
    numbers = [0, 2] if name == "p-tuning-lstm" else [0, 2, 4]
    for number in numbers:
        x = F.linear(x, weights[f"mlp_head.{number}.weight"], weights[f"mlp_head.{number}.bias"])
        x = x.relu() if number != numbers[-1] else x
    assert torch.allclose(x, saved, atol=1e-6)


def buckets(distance, count, far):
    """Decoder: the distance back to the key, exact at first and then on a logarithmic scale."""
    exact = count // 2
    back = (-distance).clamp(min=0)
    scaled = torch.log(back.clamp(min=1).float() / exact) / torch.log(torch.tensor(far / exact)) * (count - exact)
    return torch.where(back < exact, back, (exact + scaled.long()).clamp(max=count - 1))


def prefix_t5(name, base_name, layers, order):
    """`order`: the entries that are the keys of the decoder's layers."""
    model, tensors, inputs, expected = case(ADDITIVE / name, base_name)
    base = model.get_base_model()
    config = base.config
    heads, width = config.num_heads, config.d_kv
    seen = {}
    for i, block in enumerate(base.decoder.block):
        watch(seen, i, block.layer[0].SelfAttention)
        watch(seen, f"cross {i}", block.layer[1].EncDecAttention)
        watch(seen, f"cross query {i}", block.layer[1].EncDecAttention.q)
    output = model(**inputs)
    plain = base_model(base_name).eval().encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    assert torch.allclose(output.encoder_last_hidden_state, plain, atol=1e-5)  # the encoder has no prefix
    assert output.logits.shape[:2] == inputs["labels"].shape

    matrix = tensors["prompt_embeddings"]
    assert matrix.shape == (TOKENS, 2 * layers * heads * width)
    entries = matrix.view(TOKENS, 2 * layers, heads, width).permute(1, 2, 0, 3)
    length = inputs["labels"].shape[1]
    query_at = TOKENS + torch.arange(length)[:, None]
    key_at = torch.arange(TOKENS + length)[None]
    table = base.decoder.block[0].layer[0].SelfAttention.relative_attention_bias
    bias = table(buckets(key_at - query_at, config.relative_attention_num_buckets, config.relative_attention_max_distance))
    bias = bias.permute(2, 0, 1).masked_fill(key_at > query_at, float("-inf"))

    def split(x):
        return x.view(*x.shape[:2], heads, width).transpose(1, 2)

    for i, block in enumerate(base.decoder.block):
        assert order[i] == 4 * i % (2 * layers)
        attention = block.layer[0].SelfAttention
        hidden = seen[i][0][0]
        key = torch.cat([entries[order[i]].expand(4, -1, -1, -1), split(attention.k(hidden))], 2)
        value = torch.cat([entries[order[i] + 1].expand(4, -1, -1, -1), split(attention.v(hidden))], 2)
        weight = (split(attention.q(hidden)) @ key.transpose(2, 3) + bias).softmax(-1)
        by_hand = attention.o((weight @ value).transpose(1, 2).flatten(2))
        assert torch.allclose(by_hand, seen[i][2][0], atol=1e-5), i

        attention = block.layer[1].EncDecAttention  # only the encoder's states, no prefix and no position bias
        hidden = seen[f"cross query {i}"][0][0]
        state = output.encoder_last_hidden_state
        scores = split(attention.q(hidden)) @ split(attention.k(state)).transpose(2, 3)
        scores = scores.masked_fill(inputs["attention_mask"][:, None, None] == 0, float("-inf"))
        by_hand = attention.o((scores.softmax(-1) @ split(attention.v(state))).transpose(1, 2).flatten(2))
        assert torch.allclose(by_hand, seen[f"cross {i}"][2][0], atol=1e-5), i

    used = {entry + kv for entry in order for kv in (0, 1)}
    gradient = expected["grad.prompt_embeddings"].view(TOKENS, 2 * layers, -1)
    assert {entry for entry in range(2 * layers) if gradient[:, entry].any()} == used


def prefix_t5_defaults():
    """What PEFT fills in by itself does not run on a decoder that is deeper or has wider attention."""
    for given in [{}, {"num_layers": 3}, {"token_dim": 30}]:
        config = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=TOKENS, **given)
        model = get_peft_model(base_model(T5, attn_implementation="eager"), config)
        if not given:
            assert (config.num_layers, config.token_dim, config.num_attention_heads) == (2, 24, 3)
        try:
            model(input_ids=torch.tensor([[5, 1]]), labels=torch.tensor([[6, 1]]))
        except (RuntimeError, IndexError):
            continue
        raise AssertionError(given)


def prefix_llama():
    model, tensors, inputs, expected = case(ADDITIVE / "prefix-llama", LLAMA)
    base = model.get_base_model()
    seen = {}
    watch(seen, "rotary", base.model.rotary_emb)
    for i, layer in enumerate(base.model.layers):
        watch(seen, i, layer.self_attn)
        watch(seen, f"out {i}", layer.self_attn.o_proj)
    model(**inputs)
    length = inputs["input_ids"].shape[1]
    positions = torch.arange(TOKENS, TOKENS + length)  # for padding tokens too
    assert torch.equal(seen["rotary"][1]["position_ids"][0], positions)

    matrix = tensors["prompt_embeddings"]
    assert matrix.shape == (TOKENS, 3 * 2 * 2 * 6)  # layers, key and value, key/value heads, head width
    entries = matrix.view(TOKENS, 3 * 2, 2, 6).permute(1, 2, 0, 3)
    angles = positions[:, None] / 10000 ** (torch.arange(0, 6, 2) / 6)
    angles = torch.cat([angles, angles], -1)

    def split(x):
        return x.view(4, length, -1, 6).transpose(1, 2)

    def rotate(x):
        return x * angles.cos() + torch.cat([-x[..., 3:], x[..., :3]], -1) * angles.sin()

    allowed = with_tokens(inputs["attention_mask"])[:, None, None].bool() & (
        torch.arange(TOKENS + length)[None] <= positions[:, None]
    )
    for i, layer in enumerate(base.model.layers):
        hidden = seen[i][1]["hidden_states"]
        attention = layer.self_attn
        # The keys of the prefix are not rotated.
        key = torch.cat([entries[2 * i].expand(4, -1, -1, -1), rotate(split(attention.k_proj(hidden)))], 2)
        value = torch.cat([entries[2 * i + 1].expand(4, -1, -1, -1), split(attention.v_proj(hidden))], 2)
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        scores = rotate(split(attention.q_proj(hidden))) @ key.transpose(2, 3) / 6**0.5
        weight = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        assert torch.allclose((weight @ value).transpose(1, 2).flatten(2), seen[f"out {i}"][0][0], atol=1e-5), i


def targets():
    """The modules that PEFT adapts when no targets are given."""
    t5 = [f"encoder.block.{i}.layer.0.SelfAttention." for i in range(2)]
    t5 += [f"decoder.block.{i}.layer.{x}." for i in range(3) for x in ("0.SelfAttention", "1.EncDecAttention")]
    feed = [f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in range(2)]
    feed += [f"decoder.block.{i}.layer.2.DenseReluDense.wo" for i in range(3)]
    llama = [f"model.layers.{i}.self_attn." for i in range(3)]
    down = [f"model.layers.{i}.mlp.down_proj" for i in range(3)]
    everything = [a + p for a in llama for p in ("q_proj", "k_proj", "v_proj", "o_proj")]
    everything += [f"model.layers.{i}.mlp.{p}_proj" for i in range(3) for p in ("gate", "up", "down")]
    for folder, modules, suffixes in [
        (REPARAM / "lora-t5", [a + p for a in t5 for p in "qv"], ["lora_A.weight", "lora_B.weight"]),
        (REPARAM / "lora-llama", [a + p for a in llama for p in ("q_proj", "v_proj")], ["lora_A.weight", "lora_B.weight"]),
        (REPARAM / "lora-llama-all", everything, ["lora_A.weight", "lora_B.weight"]),
        (ADDITIVE / "ia3-t5", [a + p for a in t5 for p in "kv"] + feed, ["ia3_l"]),
        (ADDITIVE / "ia3-llama", [a + p for a in llama for p in ("k_proj", "v_proj")] + down, ["ia3_l"]),
    ]:
        saved = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert saved.keys() == {f"base_model.model.{m}.{s}" for m in modules for s in suffixes}, folder
        for key, value in saved.items():
            if key.endswith("ia3_l"):  # feed-forward: a row that scales the input
                assert value.shape[0 if key.split(".")[-2] in ("wo", "down_proj") else 1] == 1, key


def search(model, prompt, settings):
    """Beam search as the README describes it, one prompt at a time and without a cache."""
    beams, most = settings["num_beams"], settings["max_new_tokens"]
    penalty, early = settings.get("length_penalty", 1.0), settings.get("early_stopping", False)
    running, finished = [(0.0, [])], []
    for step in range(1, most + 1):
        prefixes = torch.tensor([([0] if model.config.is_encoder_decoder else prompt) + ids for _, ids in running])
        if model.config.is_encoder_decoder:
            logits = model(torch.tensor([prompt] * len(running)), decoder_input_ids=prefixes).logits
        else:
            logits = model(prefixes).logits
        sums = logits[:, -1].log_softmax(-1) + torch.tensor([total for total, _ in running])[:, None]
        best = sums.flatten().topk(2 * beams)
        candidates = [
            (total, running[at // 97][1] + [at % 97]) for total, at in zip(best.values.tolist(), best.indices.tolist())
        ]
        ended = [ids[-1] == settings["eos_token_id"] or step == most for _, ids in candidates]
        finished += [(t / step**penalty, ids) for (t, ids), end in zip(candidates[:beams], ended) if end]
        finished = sorted(finished, reverse=True)[:beams]
        running = [candidate for candidate, end in zip(candidates, ended) if not end][:beams]
        if len(finished) == beams and running:
            length = most if early == "never" else step
            if early is True or running[0][0] / length**penalty <= finished[-1][0]:
                break
    return finished[0]


def beam_search():
    for name in ["t5", "t5-gated", "llama", "llama-llama3"]:
        model = base_model(name).eval()
        for example in read_json(name + "/generation.json"):
            for row, prompt in enumerate(example["input_ids"]):
                score, ids = search(model, prompt, example["settings"])
                assert ids == example["ids"][row], (name, example["settings"])
                if "scores" in example:
                    assert abs(score - example["scores"][row]) < 1e-5


@torch.no_grad()
def main():
    os.chdir(MODELS)
    prompt_t5("prompt-t5")
    prompt_t5("p-tuning-t5")
    prompt_llama("prompt-llama")
    prompt_llama("p-tuning-llama")
    for name in ["p-tuning-mlp", "p-tuning-lstm", "p-tuning-t5", "p-tuning-llama"]:
        p_tuning(name)
    prefix_t5("prefix-t5", T5, 3, [0, 4, 2])
    prefix_t5("prefix-t5-even", T5_EVEN, 4, [0, 4, 0, 4])
    prefix_t5_defaults()
    prefix_llama()
    targets()
    beam_search()
    print("all facts hold")


if __name__ == "__main__":
    main()
