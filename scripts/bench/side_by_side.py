"""Training steps by `peft bench step` and by Hugging Face PEFT on PyTorch, in turn on the same machine.

Both: a model with random weights, a classification head on RoBERTa and the model's own on T5 and LLaMA, dropout as in the model, f32,
AdamW, the same number of threads. LoRA has r 8 on the queries and values, QLoRA r 64 on all linear maps, which are NF4 (PEFT's by
bitsandbytes' CPU backend) and packed one by one, so that the peak is not that of a dense model. Each round is a process of its own for each side, so that peak
memory is that of one side. Prints a table with the medians of the rounds' medians and their ratios; where other programs run beside, the
processor time that a step takes is what to look at. Needs torch, transformers and peft
(scripts/golden/requirements.txt).

    python3 scripts/bench/side_by_side.py [--program target/debug/peft] [--rounds 3] [--steps 3] [MODEL:METHOD:BATCHxTOKENS ..]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

CASES = ["roberta-base:lora:32x128", "roberta-base:lora:8x128", "roberta-base:bitfit:8x128", "roberta-base:ia3:8x128"]
CASES += ["smollm2-135m:lora:8x128", "t5-base:lora:8x128"]
ROBERTA = {
    "roberta-base": dict(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072),
    "roberta-large": dict(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096),
}
T5 = {"t5-base": dict(num_layers=12, d_model=768, num_heads=12, d_ff=3072)}
LLAMA = {
    "smollm2-135m": dict(
        vocab_size=49152,
        num_hidden_layers=30,
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        tie_word_embeddings=True,
    ),
    "tinyllama-1.1b": dict(
        vocab_size=32000,
        num_hidden_layers=22,
        hidden_size=2048,
        num_attention_heads=32,
        num_key_value_heads=4,
        intermediate_size=5632,
    ),
}
MAPS = {"roberta": ["query", "value"], "t5": ["q", "v"], "llama": ["q_proj", "v_proj"]}


def model_of(name):
    from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification
    from transformers import T5Config, T5ForConditionalGeneration

    if name in ROBERTA:
        config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **ROBERTA[name])
        return "roberta", RobertaForSequenceClassification(config)
    if name in T5:
        return "t5", T5ForConditionalGeneration(T5Config(**T5[name]))
    return "llama", LlamaForCausalLM(LlamaConfig(**LLAMA[name]))


def packed_llama(name, checkpointing):
    """Its matrices are packed one by one, so that the peak is not that of a dense model."""
    import bitsandbytes as bnb
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from torch import nn
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(max_position_embeddings=2048, **LLAMA[name])
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "layers" in name:
            dense = torch.randn(module.out_features, module.in_features) * 0.02
            packed = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4", device="meta"
            )
            packed.weight = bnb.nn.Params4bit(dense, requires_grad=False, quant_type="nf4").to("cpu")
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, packed)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            parent, _, leaf = name.rpartition(".")
            values = torch.ones(parameter.shape) if parameter.dim() == 1 else torch.randn(parameter.shape) * 0.02
            setattr(model.get_submodule(parent), leaf, nn.Parameter(values))
    model.is_loaded_in_4bit = True
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    lora = LoraConfig(task_type="CAUSAL_LM", r=64, lora_alpha=64, target_modules="all-linear")
    return get_peft_model(model, lora)


def adapted(name, method, checkpointing):
    from peft import IA3Config, LoraConfig, get_peft_model

    if method == "qlora":
        return "llama", packed_llama(name, checkpointing)
    family, model = model_of(name)
    task = {"roberta": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM", "llama": "CAUSAL_LM"}[family]
    if method == "lora":
        config = LoraConfig(task_type=task, r=8, lora_alpha=8, target_modules=MAPS[family])
        return family, get_peft_model(model, config)
    if method == "ia3":
        return family, get_peft_model(model, IA3Config(task_type=task))
    if method == "bitfit":
        for key, p in model.named_parameters():
            p.requires_grad = "classifier" in key or key.endswith("bias")
        return family, model
    if method == "full":
        return family, model
    sys.exit(f"{method}: the reference knows lora, qlora, ia3, bitfit and full")


def reference(args):
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    name, method, batch, seq = parsed(args.cases[0])
    family, model = adapted(name, method, args.checkpointing)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    vocabulary = model.config.vocab_size
    ids = torch.randint(vocabulary // 4, vocabulary, (batch, seq))
    labels = torch.arange(batch) % 2 if family == "roberta" else ids

    def step():
        start, before = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return time.perf_counter() - start, time.process_time() - before

    step()
    times = zip(*(step() for _ in range(args.steps)))
    report = {
        name: {"best": min(seconds), "median": statistics.median(seconds)}
        for name, seconds in zip(("seconds", "processor_seconds"), times)
    }
    report |= {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "trainable": sum(p.numel() for p in trained),
    }
    print(json.dumps(report))


def parsed(case):
    name, method, sizes = case.split(":")
    batch, seq = map(int, sizes.split("x"))
    return name, method, batch, seq


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="MODEL:METHOD:BATCHxTOKENS")
    parser.add_argument("--program", default="target/debug/peft")
    parser.add_argument("--checkpointing", action="store_true", help="PEFT recomputes activations in backward (qlora)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reference:
        return reference(args)

    print("| case | ours: s, processor s, MB | PyTorch | ratio of times | of processor time | of memory |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for case in args.cases:
        name, method, batch, seq = parsed(case)
        common = ["--steps", args.steps, "--threads", args.threads]
        ours = [args.program, "bench", "step", "--model", f"shape:{name}", "--method", method]
        ours += ["--batch", batch, "--seq", seq, *common]
        if method == "qlora":
            ours += ["--base", "nf4", "--set", "r=64", "--set", "lora_alpha=64"]
        theirs = [sys.executable, __file__, "--reference", case, *common, *["--checkpointing"] * args.checkpointing]
        sides = [(ours, []), (theirs, [])]
        for _ in range(args.rounds):
            for command, reports in sides:
                output = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE).stdout
                reports.append(json.loads(output))
                print(case, json.dumps(reports[-1]), file=sys.stderr, flush=True)
        if len({report["trainable"] for _, reports in sides for report in reports}) != 1:
            sys.exit(f"{case}: the two sides do not train the same number of parameters")
        values = [lambda r: r["seconds"]["median"], lambda r: r["processor_seconds"]["median"], lambda r: r["peak_bytes"] / 1e6]
        ours, theirs = ([statistics.median(map(value, reports)) for value in values] for _, reports in sides)
        cells = ["{:.2f}, {:.2f}, {:.0f}".format(*side) for side in (ours, theirs)]
        ratios = [f"{a / b:.2f}" for a, b in zip(ours, theirs)]
        print(f"| {case} | {' | '.join(cells + ratios)} |", flush=True)


if __name__ == "__main__":
    main()
