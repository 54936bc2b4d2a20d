"""bitsandbytes' side of `cargo xtask bench quant`: answers each line of standard input with the seconds that it took: the median of three calls.

Lines: `quantize|dequantize DTYPE single|double`, over one random 4096×4096 matrix of that type on the CPU. Dequantising
makes a new tensor: its `out=` has no CPU implementation.
"""

import sys
import time

import torch
from bitsandbytes import functional

SIDE = 4096
CALLS = 3

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
source = torch.randn(SIDE, SIDE) * 0.02
weights = {"f32": source, "bf16": source.bfloat16()}
quantized = {
    (dtype, nested): functional.quantize_4bit(weight, blocksize=64, compress_statistics=nested == "double", quant_type="nf4")
    for dtype, weight in weights.items()
    for nested in ("single", "double")
}

print("ready", flush=True)
for line in sys.stdin:
    work, dtype, nested = line.split()
    packed, state = quantized[dtype, nested]
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        if work == "quantize":
            functional.quantize_4bit(weights[dtype], blocksize=64, compress_statistics=nested == "double", quant_type="nf4")
        else:
            functional.dequantize_4bit(packed, state)
        seconds.append(time.perf_counter() - start)
    print(sorted(seconds)[CALLS // 2], flush=True)
