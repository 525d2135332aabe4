"""Encoding and decoding by peft-quant and by bitsandbytes, in turn on the same machine, with the same number of threads.

Both encode a matrix and decode it, into new memory and ("again") into the same, for which bitsandbytes' kernels are called directly: its
Python interface always takes new memory. Each round is a process of its own for each side. Prints for each operation the median of the
rounds' medians, GB of dense numbers a second, and the ratio of the times. Needs torch and bitsandbytes
(scripts/golden/requirements.txt), and the example built for release:

    cargo build --release -p peft-quant --example codec_speed
    python3 scripts/bench/codecs.py [--program target/release/examples/codec_speed] [--rows 4096] [--columns 4096]
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time


def reference(args):
    import bitsandbytes.functional as F
    import torch
    from bitsandbytes.cextension import lib

    torch.set_num_threads(args.threads)
    weights = torch.randn(args.rows, args.columns, generator=torch.Generator().manual_seed(0)) * 0.5
    seconds = {}

    def timed(name, f):
        made = f()
        seconds[name] = []
        for _ in range(args.runs):
            start = time.perf_counter()
            f()
            seconds[name].append(time.perf_counter() - start)
        return made

    def again(name, kernel, out, *arguments):
        pointers = [F.get_ptr(x) if isinstance(x, torch.Tensor) else ctypes.c_longlong(x) for x in arguments]
        timed(name, lambda: getattr(lib, kernel)(*pointers))
        assert torch.isfinite(out).all() and out.any()

    f32, bf16 = (torch.zeros_like(weights, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    for book in ("nf4", "fp4"):
        packed, state = timed(f"{book} encode f32", lambda: F.quantize_4bit(weights, quant_type=book))
        timed(f"{book} decode f32", lambda: F.dequantize_4bit(packed, state))
        for name, out in (("fp32", f32), ("bf16", bf16)):
            kernel = f"cdequantize_blockwise_cpu_{book}_{name}"
            arguments = packed, state.absmax, out, 64, args.rows, args.columns
            again(f"{book} decode {name.replace('p', '')} again", kernel, out, *arguments)
        halves = weights.bfloat16()
        double = lambda: F.quantize_4bit(halves, quant_type=book, compress_statistics=True)
        packed, state = timed(f"{book} double encode bf16", double)
        timed(f"{book} double decode bf16", lambda: F.dequantize_4bit(packed, state))
    codes, state = timed("dynamic encode f32", lambda: F.quantize_blockwise(weights, blocksize=256))
    timed("dynamic decode f32", lambda: F.dequantize_blockwise(codes, state))
    arguments = state.code, codes, state.absmax, f32, 256, weights.numel()
    again("dynamic decode f32 again", "cdequantize_blockwise_cpu_fp32", f32, *arguments)
    codes, scales, _ = timed("int8 encode f32", lambda: F.int8_vectorwise_quant(weights.half()))
    timed("int8 decode f32", lambda: F.int8_vectorwise_dequant(codes, scales))
    print(json.dumps({"threads": torch.get_num_threads(), "weights": weights.numel(), "seconds": seconds}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/examples/codec_speed")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reference:
        return reference(args)

    sizes = ["--rows", args.rows, "--columns", args.columns, "--runs", args.runs, "--threads", args.threads]
    ours = [args.program, args.rows, args.columns, args.runs]
    theirs = [sys.executable, __file__, "--reference", *sizes]
    sides = {"ours": (ours, []), "bitsandbytes": (theirs, [])}
    environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    for _ in range(args.rounds):
        for command, reports in sides.values():
            command = [str(word) for word in command]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
            reports.append(json.loads(output))
    first = {name: reports[0] for name, (_, reports) in sides.items()}
    if first["ours"]["threads"] != first["bitsandbytes"]["threads"]:
        sys.exit("the two sides do not use the same number of threads")

    def median(name, operation):
        return statistics.median(statistics.median(report["seconds"][operation]) for report in sides[name][1])

    print(f"kernel {first['ours']['kernel']}, {first['ours']['threads']} threads, {args.rows} x {args.columns}")
    print(f"{'':26}{'ours, ms':>10}{'GB/s':>8}{'bitsandbytes, ms':>18}{'GB/s':>8}{'ratio':>8}")
    for operation in first["ours"]["seconds"]:
        size = first["ours"]["weights"] * (2 if "bf16" in operation else 4)
        line = f"{operation:26}"
        times = [median(name, operation) for name in sides if operation in first[name]["seconds"]]
        for seconds, width in zip(times, (10, 18)):
            line += f"{seconds * 1e3:{width}.1f}{size / seconds / 1e9:8.2f}"
        print(line + (f"{times[0] / times[1]:8.3f}" if len(times) == 2 else ""))


if __name__ == "__main__":
    main()
