"""PEFT + bitsandbytes on one device: some QLoRA steps on a shape with random NF4 weights, on the rows that Tailor has.

usage: gpu_peer.py CONFIG_JSON DEVICE ROWS TOKENS PACKED RANK STEPS none|selective|layers|layers_on_host OPTIMIZER

Weights are made on the device one layer at a time, so that a 70B shape needs no disk and no host memory. The packed texts
of a sequence are given as rows of their own, which is how PEFT's users train without a custom attention: as many tokens in
a step. Prints `name value` lines.
"""

import json
import sys
import time

import torch
from torch import nn

import bitsandbytes as bnb
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

config_json, device = sys.argv[1:3]
rows, tokens, packed, rank, steps = map(int, sys.argv[3:8])
policy, optimizer_name = sys.argv[8:10]
fields = json.loads(config_json)
config = AutoConfig.for_model(fields.pop("model_type"), **fields)
seq2seq = config.is_encoder_decoder
torch.manual_seed(0)
dtype = torch.bfloat16


def four_bit(linear):
    weight = torch.randn(linear.out_features, linear.in_features, dtype=dtype, device=device) * 0.02
    layer = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, compress_statistics=True,
        quant_type="nf4", device="meta",
    )
    layer.weight = bnb.nn.Params4bit(
        weight.cpu() if device == "cpu" else weight, requires_grad=False, compress_statistics=True, quant_type="nf4"
    ).to(device)
    return layer


def materialise(module, skip):
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and name not in skip:
            setattr(module, name, four_bit(child))
            continue
        materialise(child, skip)
    for name, parameter in list(module.named_parameters(recurse=False)):
        if not parameter.is_meta:
            continue
        value = torch.ones(parameter.shape, dtype=dtype, device=device)
        if parameter.dim() > 1:
            value = torch.randn(parameter.shape, dtype=dtype, device=device) * 0.02
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
with torch.device("meta"):
    model = kind.from_config(config, dtype=dtype)
materialise(model, {"lm_head"})
for name, module in model.named_modules():
    # Rotary frequencies are buffers, computed at construction.
    if name.endswith("rotary_emb"):
        module.__init__(config)
        module.to(device)
if seq2seq:
    model.encoder.embed_tokens = model.decoder.embed_tokens = model.shared
model.is_loaded_in_4bit = True
model.is_quantized = True
again = policy != "none"
model = prepare_model_for_kbit_training(
    model, use_gradient_checkpointing=again, gradient_checkpointing_kwargs={"use_reentrant": False}
)
task = "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM"
model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=task))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
if device == "cpu":
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
else:
    kinds = {
        "adamw": bnb.optim.AdamW32bit, "adamw8bit": bnb.optim.AdamW8bit, "paged_adamw": bnb.optim.PagedAdamW32bit,
        "paged_adamw8bit": bnb.optim.PagedAdamW8bit,
    }
    optimizer = kinds[optimizer_name](trained, lr=1e-4, weight_decay=0.0)


def ids(row, count):
    return [(row * 7919 + at * 104_729) % config.vocab_size for at in range(count)]


texts, length = rows * packed, tokens // packed
if seq2seq:
    answer = length // 4
    batch = {
        "input_ids": torch.tensor([ids(row, length - answer) for row in range(texts)], device=device),
        "labels": torch.tensor([ids(row + 1, answer) for row in range(texts)], device=device),
    }
else:
    batch = {"input_ids": torch.tensor([ids(row, length) for row in range(texts)], device=device)}
    batch["labels"] = batch["input_ids"]
gpu = device.startswith("cuda")
if gpu:
    torch.cuda.reset_peak_memory_stats(device)
model.train()
losses, norms, speeds = [], [], []
for step in range(steps):
    started = time.monotonic()
    with torch.autocast("cuda" if gpu else "cpu", dtype=dtype):
        loss = model(**batch).loss
    loss.backward()
    norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    if gpu:
        torch.cuda.synchronize(device)
    speeds.append(rows * tokens / (time.monotonic() - started))
if gpu:
    peak = torch.cuda.max_memory_allocated(device)
else:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
warm = sorted(speeds[2:] or speeds)
print("peak", peak)
print("tokens_per_second", warm[len(warm) // 2])
print("first_loss", losses[0])
print("loss", losses[-1])
print("grad_norm", norms[-1])
