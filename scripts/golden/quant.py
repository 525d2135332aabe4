"""Writes peft-quant/tests/golden/codecs.safetensors with bitsandbytes on a CPU: what its codecs make of numbers, to the bit.

A case is a few tensors `CASE.PART`; what the parts are stands in the README. Decoded values are those of bitsandbytes' Python
code, which its CPU kernels equal but for two faults of theirs that `faults` shows.

Usage: python scripts/golden/quant.py
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes.backends.cpu.ops as cpu
import bitsandbytes.functional as F
import torch
from common import REPO, generator, normal, save

FOLDER = REPO / "peft-quant" / "tests" / "golden"
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
OPS = torch.ops.bitsandbytes


def python_code(op, *args):
    """An operation as bitsandbytes' Python code computes it, where a kernel would come first."""
    return op.default._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args)


def flat(packed, absmax, block, book, count, dtype):
    """Decodes as one run of numbers. The kernels for AVX-512 take a block that crosses rows of a matrix for another one."""
    return python_code(OPS.dequantize_4bit, packed, absmax, block, book, (count,), dtype)


def four_bit(values, book, block, nested=False):
    packed, state = F.quantize_4bit(values, blocksize=block, quant_type=book, compress_statistics=nested)
    parts = {"values": values, "bytes": packed.flatten(), "absmax": state.absmax}
    absmax = state.absmax
    if nested:
        parts |= {"nested_absmax": state.state2.absmax, "offset": state.offset.reshape(1)}
        absmax = F.dequantize_blockwise(absmax, state.state2) + state.offset
        parts["scales"] = absmax
    parts["decoded"] = flat(packed, absmax, block, book, values.numel(), values.dtype)
    return parts


def ties(book):
    """Every midpoint of two values and its neighbours, and the values: 1 makes them codes of themselves."""
    code = F.get_4bit_type(book, device="cpu").sort().values
    middle = (code[:-1] + code[1:]) / 2
    up, down = torch.nextafter(middle, torch.tensor(2.0)), torch.nextafter(middle, torch.tensor(-2.0))
    values = torch.cat([middle, up, down, code, torch.tensor([-0.0])])
    return torch.nn.functional.pad(values, (0, 64 - values.numel() % 64), value=1.0)


def specials(gen):
    tiny = torch.tensor(1e-45)
    yield "zeros", torch.zeros(128)
    yield "zeros-odd", torch.zeros(65)
    yield "constant", torch.cat([torch.full((64,), value) for value in (0.3, -0.3, 1e-3, -7.0)])
    yield "denormal", normal(gen, (100,), 1e-39)
    yield "least", torch.cat([tiny * k for k in torch.arange(-32, 33).float().split(1)])
    yield "huge", normal(gen, (130,), 1e38).clamp(-3.4e38, 3.4e38)
    yield "one-large", torch.cat([normal(gen, (63,), 1e-4), torch.tensor([-5.0]), normal(gen, (64,), 1e-4)])
    for count in (1, 2, 3, 31, 63, 65, 127):
        yield f"{count}", normal(gen, (count,), 1.0)


def four_bit_cases():
    for book in ("nf4", "fp4"):
        for name, dtype in TYPES.items():
            gen = generator(f"quant {book} {name}")
            yield f"{book}.64.{name}", four_bit(normal(gen, (7, 29), 0.05).to(dtype), book, 64)
        gen = generator(f"quant {book}")
        for block in (32, 128, 256, 512, 1024, 2048, 4096) if book == "nf4" else (32, 4096):
            yield f"{book}.{block}.bf16", four_bit(normal(gen, (block + 37,), 0.05).bfloat16(), book, block)
        yield f"{book}.64.ties", four_bit(ties(book), book, 64)
        for name, values in specials(gen):
            yield f"{book}.64.{name}", four_bit(values, book, 64)
        yield f"{book}.32.nested", four_bit(normal(gen, (66, 130), 0.05).bfloat16(), book, 32, nested=True)
        yield f"{book}.64.nested", four_bit(normal(gen, (64, 64), 0.05).half(), book, 64, nested=True)


def blockwise_cases():
    for name, signed in (("signed", True), ("unsigned", False)):
        gen = generator(f"quant {name}")
        code = F.create_dynamic_map(signed=signed)
        middle = (code[:-1] + code[1:]) / 2
        values = {
            "normal": normal(gen, (700,), 1e-3),
            "short": normal(gen, (5,), 1.0),
            "wide": normal(gen, (512,), 1.0) * 10 ** normal(gen, (512,), 3.0),
            "zeros": torch.zeros(300),
            "denormal": normal(gen, (300,), 1e-39),
            "map": code,
            "ties": torch.cat([middle, torch.ones(1)]),
            "above": torch.cat([torch.nextafter(middle, torch.tensor(2.0)), torch.ones(1)]),
        }
        for case, x in values.items():
            x = x if signed else x.abs()
            parts = {"values": x}
            both = {"nearest": python_code(OPS.quantize_blockwise, x, code, 256), "bins": OPS.quantize_blockwise(x, code, 256)}
            for search, (codes, absmax) in both.items():
                decoded = OPS.dequantize_blockwise(codes, absmax, code, 256, torch.float32)
                parts |= {f"{search}.codes": codes, f"{search}.absmax": absmax, f"{search}.decoded": decoded}
            yield f"{name}.256.{case}", parts


def mean_cases():
    """Means of (i * 7919 % 1999) / 1999 with i below the number in the name, on one thread."""
    counts = [1, 2, 3, 5, 7, 8, 9, 15, 31, 32, 33, 63, 100, 255, 256, 511, 512, 513, 1000, 4095, 8200, 32767, 32768]
    for count in counts + [70_000, 524_288, 530_000]:
        x = (torch.arange(count) * 7919 % 1999).float() / 1999
        yield f"mean.{count}", {"mean": x.mean().reshape(1)}


def int8_cases():
    for name, dtype in TYPES.items():
        gen = generator(f"quant int8 {name}")
        x = normal(gen, (5, 37), 0.05)
        x[1] = 0
        x[2, :6] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -126.5])
        yield name, x.to(dtype), 0.0
    # Rows for which 127 times the reciprocal of the scale is another number than 127 over the scale, and a code shows it.
    pairs = torch.rand((400_000, 2), generator=generator("quant int8 reciprocal")).sort(dim=1, descending=True).values.half()
    scale, x = pairs.float().T
    shows = torch.round(x * (scale.reciprocal() * 127)) != torch.round(x * (torch.full_like(scale, 127) / scale))
    yield "reciprocal", pairs[shows][:16], 0.0
    for rows, count in ((1, 1), (1, 3), (6, 4), (6, 0)):
        x = normal(generator(f"quant int8 {rows} {count}"), (rows, 50), 1.0)
        for i in range(count):
            x[(3 * i) % rows, (7 * i) % 50] = 6.0 * (-1) ** i + i
        yield f"outliers-{rows}-{count}", x.half(), 6.0


def int8_parts(x, threshold):
    codes, scales, outliers = F.int8_vectorwise_quant(x.half(), threshold)
    outliers = torch.empty(0, dtype=torch.int64) if outliers is None else outliers
    parts = {"values": x, "threshold": torch.tensor([threshold]), "codes": codes, "scales": scales, "outliers": outliers}
    return parts | {"decoded": F.int8_vectorwise_dequant(codes, scales).to(x.dtype)}


def range_rule(weights, bits, group, symmetric):
    """GPTQ's scales and zero points [out, groups], and the codes [out, in] nearest to the weights.

    Where no weight of a group is negative, GPTQ's code cuts half of a symmetric range off; here a symmetric range is one always.
    """
    x = weights.reshape(weights.shape[0], -1, group)
    low, high = x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)
    levels = 2**bits - 1
    if symmetric:
        high = torch.maximum(low.abs(), high)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    scale = (high - low) / levels
    zero = torch.full_like(scale, (levels + 1) / 2) if symmetric else torch.round(-low / scale)
    codes = (torch.round(x / scale[..., None]) + zero[..., None]).clamp(0, levels)
    return codes.reshape(weights.shape).long(), scale, zero


def stream(codes, bits):
    """Columns of integers as columns of words, from the bits of one long number each."""
    words = []
    for column in codes.T.tolist():
        number = sum(code << (bits * i) for i, code in enumerate(column))
        words.append([(number >> (32 * i)) % 2**32 for i in range(len(column) * bits // 32)])
    return torch.tensor(words).T.to(torch.uint32)


def eight_reordered(codes):
    """Each eight columns in the order of AWQ's fields."""
    return codes.reshape(codes.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(codes.shape)


def grouped(weights, bits, group, symmetric, order=None):
    weights = weights.half()
    codes, scale, zero = range_rule(weights.float(), bits, group, symmetric)
    scales, zeros = scale.half().T, zero.long().T
    groups = torch.arange(weights.shape[1]) // group
    if order is not None:
        # As if the inputs had been put into this order before they were cut into groups.
        codes, groups = codes[:, order], groups[order]
    value = scales.float()[groups] * (codes.T - zeros[groups])
    parts = {"values": weights, "group": torch.tensor([group]), "scale": scale, "zero": zero, "scales": scales}
    parts |= {"g_idx": groups.int(), "decoded": value.T.half(), "qweight": stream(codes.T, bits)}
    parts |= {"gptq_v2.qzeros": stream(zeros.T, bits).T}
    if zeros.min() > 0:
        parts |= {"gptq.qzeros": stream(zeros.T - 1, bits).T}
    if bits == 4 and order is None:
        parts |= {"awq.qweight": stream(eight_reordered(codes.T).T, 4).T, "awq.qzeros": stream(eight_reordered(zeros).T, 4).T}
    return parts


def grouped_cases():
    for bits in (2, 3, 4, 8):
        gen = generator(f"quant grouped {bits}")
        yield f"grouped.{bits}.asymmetric", grouped(normal(gen, (32, 64), 0.05, 0.01), bits, 32, False)
        yield f"grouped.{bits}.symmetric", grouped(normal(gen, (32, 64), 0.05), bits, 64, True)
        order = torch.randperm(64, generator=gen)
        yield f"grouped.{bits}.order", grouped(normal(gen, (32, 64), 0.05), bits, 16, False, order)
        odd = normal(gen, (32, 64), 0.05)
        odd[0], odd[1], odd[2], odd[3] = 0, odd[1].abs(), -odd[2].abs(), odd[3] * 1e-5
        yield f"grouped.{bits}.odd", grouped(odd, bits, 16, False)


def adamw_cases():
    """Five steps of bitsandbytes' 8-bit AdamW, whose moments the kernel encodes, and the same where its Python code does."""
    kernel = cpu._quant_blockwise_fp32_direct

    def nearest(values, code, absmax_out, codes_out, block):
        codes, absmax = python_code(OPS.quantize_blockwise, values, code, block)
        codes_out.copy_(codes), absmax_out.copy_(absmax)

    for search, quantize in (("nearest", nearest), ("bins", kernel)):
        cpu._quant_blockwise_fp32_direct = quantize
        for count in (700, 256):
            gen = generator(f"quant adamw {count}")
            p, g = normal(gen, (count,), 0.05), normal(gen, (5, count), 1e-2) * 10 ** normal(gen, (5, count), 1.0)
            g[:, 3] = 0
            parts = {"values": p.clone(), "gradients": g}
            maps = [F.create_dynamic_map(signed=signed) for signed in (True, False)]
            states = [torch.zeros(count, dtype=torch.uint8) for _ in range(2)]
            absmax = [torch.zeros(-(-count // 256)) for _ in range(2)]
            for step in range(5):
                F.optimizer_update_8bit_blockwise(
                    "adam", g[step], p, *states, 0.9, 0.995, 0.0, 0.0, 1e-8, step + 1, 1e-2, *maps, *absmax, weight_decay=0.1
                )
            parts |= {"final": p, "codes1": states[0], "codes2": states[1], "absmax1": absmax[0], "absmax2": absmax[1]}
            yield f"adamw.{search}.{count}", parts
    cpu._quant_blockwise_fp32_direct = kernel


def faults():
    """What bitsandbytes' kernels for CPUs with AVX-512 and its bf16 compute otherwise than its Python code."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return
    values = normal(generator("quant faults"), (4, 48), 1.0)
    packed, state = F.quantize_4bit(values, quant_type="nf4")
    right = flat(packed, state.absmax, 64, "nf4", values.numel(), torch.float32).reshape(values.shape)
    found = F.dequantize_4bit(packed, state)
    print("blocks that cross rows are decoded with another block's scale:", not torch.equal(found, right))
    packed, state = F.quantize_4bit(torch.full((64,), 1e-39).bfloat16(), quant_type="nf4")
    print("denormal bf16 are decoded as 0:", not F.dequantize_4bit(packed, state).any())


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    tensors = {}
    cases = [*four_bit_cases(), *blockwise_cases(), *grouped_cases(), *adamw_cases(), *mean_cases()]
    cases += [(f"int8.{name}", int8_parts(x, threshold)) for name, x, threshold in int8_cases()]
    for case, parts in cases:
        assert not any(name.startswith(case + ".") for name in tensors), case
        tensors |= {f"{case}.{part}": value for part, value in parts.items()}
    save(FOLDER / "codecs.safetensors", tensors)
    faults()


if __name__ == "__main__":
    main()
