"""Writes tests/golden/quant/model.safetensors: what bitsandbytes makes of a few small weights.

Run with a Python that has torch 2.11, bitsandbytes 0.50 and safetensors (`cargo xtask parity` makes one):

    python tests/golden/make_quant.py

For each case: `<case>.input`, bitsandbytes' own keys for `<case>.weight`, `<case>.dequantized`, and for double
quantisation `<case>.nearest`: the 8-bit numbers by the midpoint rule of the CUDA back end (the stored ones follow the
table of the CPU back end).
"""

from pathlib import Path

import bitsandbytes.functional as F
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import save_file

CASES = {
    # name: (shape, dtype, code, blocksize, double)
    "nf4": ((128, 160), torch.float32, "nf4", 64, True),
    "nf4_bf16": ((64, 96), torch.bfloat16, "nf4", 64, True),
    "nf4_f16": ((32, 64), torch.float16, "nf4", 64, True),
    "nf4_single": ((16, 96), torch.float32, "nf4", 64, False),
    "nf4_block32": ((16, 80), torch.float32, "nf4", 32, True),
    "nf4_block128": ((16, 100), torch.float32, "nf4", 128, True),
    "nf4_block4096": ((16, 300), torch.float32, "nf4", 4096, True),
    "nf4_odd": ((5, 33), torch.float32, "nf4", 64, True),
    "fp4": ((32, 96), torch.float32, "fp4", 64, False),
    "fp4_bf16": ((32, 96), torch.bfloat16, "fp4", 64, True),
}


def weight(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    flat = values.view(-1)
    if flat.numel() >= 512:
        flat[64:128] = 0  # an empty block
        flat[200] = 40.0  # an outlier
        flat[256:320] = F.get_4bit_type("nf4", device="cpu").repeat(4) * 3  # the code's own values
        middles = F.get_4bit_type("nf4", device="cpu")
        flat[320:335] = (middles[:-1] + middles[1:]) / 2  # exactly on the thresholds
        flat[335] = 1.0
        flat[336:384] = 1e-30  # tiny beside the block's scale
    return values.to(dtype)


def dequantized(packed, state):
    """By bitsandbytes' default back end: the AVX-512 kernel of its CPU one (0.50.2) takes wrong scales where the last
    dimension is not a multiple of the block size."""
    absmax = state.absmax
    if state.nested:
        absmax = F.dequantize_blockwise(absmax, state.state2) + state.offset
    return _dequantize_4bit_compute(packed.view(-1), absmax, state.code, state.blocksize, state.shape, state.dtype)


def main():
    tensors = {}
    for seed, (name, (shape, dtype, code, blocksize, double)) in enumerate(CASES.items()):
        source = weight(shape, dtype, seed)
        packed, state = F.quantize_4bit(
            source, blocksize=blocksize, compress_statistics=double, quant_type=code
        )
        tensors[f"{name}.input"] = source
        tensors[f"{name}.weight"] = packed
        for key, value in state.as_dict(packed=True).items():
            tensors[f"{name}.weight.{key}"] = value.clone()
        tensors[f"{name}.dequantized"] = dequantized(packed, state)
        if double:
            absmax = torch.ops.bitsandbytes.quantize_4bit.default(source, blocksize, code, torch.uint8)[1]
            centred = absmax - state.offset
            scale = state.state2.absmax.repeat_interleave(256)[: centred.numel()]
            bounds = (state.state2.code[:-1] + state.state2.code[1:]) / 2
            scaled = (centred * (1.0 / scale.clamp(min=1e-38))).clamp(-1, 1)
            tensors[f"{name}.nearest"] = torch.bucketize(scaled, bounds).to(torch.uint8)
    target = Path(__file__).parent / "quant" / "model.safetensors"
    target.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target)
    print(target, target.stat().st_size)


main()
