"""transformers and bitsandbytes load the folder of `cargo xtask bench load --peer` in 4 bits; prints a row of its table."""

import resource
import sys
import time

import torch
import transformers

folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
transformers.utils.logging.disable_progress_bar()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quantization = transformers.BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
start = time.perf_counter()
model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, quantization_config=quantization, device_map={"": "cpu"}, dtype=torch.bfloat16
)
seconds = time.perf_counter() - start
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
finished = sum(x.numel() * x.element_size() for x in model.parameters()) / 2**20
print(f"| bitsandbytes: load and quantise | {seconds:.1f} | {peak:.0f} | {peak - finished:.0f} |")
