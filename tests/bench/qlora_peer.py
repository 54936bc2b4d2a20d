"""PEFT + bitsandbytes on the CPU: a few QLoRA steps on the folder that the benchmark wrote, on the same rows.

usage: qlora_peer.py FOLDER THREADS BATCH TOKENS RANK STEPS none|layers bf16|f32

Prints `name value` lines: the process's peak of resident memory, tokens a second of the best step but the first, the
first and the last loss, and the norm of the last gradient.
"""

import resource
import sys
import time

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

folder, (threads, batch, tokens, rank, steps), policy = sys.argv[1], map(int, sys.argv[2:7]), sys.argv[7]
layers = policy == "layers"
bf16 = sys.argv[8] == "bf16"
kind = torch.bfloat16 if bf16 else torch.float32
torch.manual_seed(0)
torch.set_num_threads(threads)
code = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=kind,
)
model = AutoModelForCausalLM.from_pretrained(
    folder, quantization_config=code, device_map={"": "cpu"}, dtype=kind
)
model = prepare_model_for_kbit_training(
    model, use_gradient_checkpointing=layers, gradient_checkpointing_kwargs={"use_reentrant": False}
)
model = get_peft_model(
    model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
vocab = AutoConfig.from_pretrained(folder).vocab_size
ids = [[(row * 7919 + at * 104_729) % vocab for at in range(tokens)] for row in range(batch)]
ids = torch.tensor(ids)
model.train()
losses, norms, speeds = [], [], []
for step in range(steps):
    started = time.monotonic()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    speeds.append(batch * tokens / (time.monotonic() - started))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print("tokens_per_second", max(speeds[1:] or speeds))
print("first_loss", losses[0])
print("loss", losses[-1])
print("first_grad_norm", norms[0])
print("grad_norm", norms[-1])
