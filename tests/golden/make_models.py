"""Writes tests/golden/models/*: tiny random models and what transformers, peft and bitsandbytes compute with them.

Run with a Python that has torch 2.11, transformers 5.23, peft 0.21, bitsandbytes 0.50 (`cargo xtask parity` makes one):

    python tests/golden/make_models.py [NAME ...]

Each folder is a Hugging Face checkpoint plus `golden.safetensors`: inputs, f32 logits, greedy answers; for some the
logits and LoRA gradients with a random adapter. `*-nf4` is what transformers saves after quantising the folder of the
same name.
"""

import json
import shutil
import sys
from pathlib import Path

import bitsandbytes as bnb
import peft
import torch
import transformers
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import save_file

HERE = Path(__file__).parent / "models"

LLAMA = dict(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
T5 = dict(
    vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0.0,
    pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)

GEMMA = LLAMA | dict(head_dim=16, num_hidden_layers=3)
GEMMA3_ROPE = dict(
    full_attention=dict(rope_type="linear", factor=4.0, rope_theta=5000.0),
    sliding_attention=dict(rope_type="default", rope_theta=100.0),
)

CASES = {
    "llama-gqa": transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3, tie_word_embeddings=False),
    "llama-tied": transformers.LlamaConfig(
        **(LLAMA | dict(num_key_value_heads=4)), attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral-window": transformers.MistralConfig(**LLAMA, sliding_window=4, head_dim=16, tie_word_embeddings=False),
    "qwen2": transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=16, tie_word_embeddings=True),
    "t5-v11": transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5-tied": transformers.T5Config(**T5, feed_forward_proj="relu", tie_word_embeddings=True),
    "mt5": transformers.MT5Config(**T5, feed_forward_proj="gated-gelu"),
    "qwen3-window": transformers.Qwen3Config(
        **LLAMA, head_dim=16, tie_word_embeddings=False, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "gemma": transformers.GemmaConfig(**GEMMA, hidden_act="gelu"),
    "gemma2": transformers.Gemma2Config(  # caps so low that they show
        **GEMMA, sliding_window=4, query_pre_attn_scalar=24, attn_logit_softcapping=1.5, final_logit_softcapping=2.0
    ),
    "gemma3": transformers.Gemma3TextConfig(
        **GEMMA, sliding_window=4, query_pre_attn_scalar=24, sliding_window_pattern=2, rope_parameters=GEMMA3_ROPE
    ),
}
WITH_LORA = {"llama-gqa", "t5-v11", "gemma2", "gemma3"}
WITH_NF4 = {"llama-gqa", "t5-v11"}


def is_t5(config):
    return config.model_type in ("t5", "mt5")


def build(config, seed):
    torch.manual_seed(seed)
    auto = transformers.AutoModelForSeq2SeqLM if is_t5(config) else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # Gemma multiplies by 1 + w
                middle = 0 if config.model_type.startswith("gemma") else 1
                parameter.copy_(middle + 0.1 * torch.randn_like(parameter))
            elif name.endswith("bias") or "relative_attention_bias" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:  # wide enough for attention to have preferences, small enough to stay well conditioned
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    if config.model_type == "t5" and not config.scale_decoder_outputs:
        # transformers 5 ties T5's head unless the checkpoint has one of its own.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)
    return model


def inputs(config, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0  # padding on the right
    mask[2, 5:] = 0
    ids = ids * mask
    decoder_ids = torch.randint(3, config.vocab_size, (3, 7), generator=generator)
    decoder_ids[:, 0] = 0
    return ids, mask, decoder_ids


def logits(model, ids, mask, decoder_ids):
    extra = dict(decoder_input_ids=decoder_ids) if is_t5(model.config) else {}
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits


def greedy(model, ids, mask):
    """One prompt at a time, so that padding plays no part. Rows are padded with -1."""
    rows = []
    for row, real in zip(ids, mask):
        prompt = row[real.bool()].unsqueeze(0)
        answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=10,
                                eos_token_id=model.config.eos_token_id, pad_token_id=0)
        answer = answer[0, 1:] if is_t5(model.config) else answer[0, prompt.shape[1]:]
        answer = [t for t in answer.tolist() if t != model.config.eos_token_id]
        rows.append(answer + [-1] * (10 - len(answer)))
    return torch.tensor(rows)


def loss_of(model, ids, mask, decoder_ids):
    """Mean cross-entropy of the next token over real positions."""
    out = logits(model, ids, mask, decoder_ids)
    targets, real = (decoder_ids, torch.ones_like(decoder_ids)) if is_t5(model.config) else (ids, mask)
    out, targets, real = out[:, :-1], targets[:, 1:], real[:, 1:].bool()
    return torch.nn.functional.cross_entropy(out[real], targets[real])


def with_lora(model, data, golden):
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear",
                             task_type="SEQ_2_SEQ_LM" if is_t5(model.config) else "CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(77)
    factors = {n: p for n, p in tuned.named_parameters() if "lora_" in n}
    for parameter in factors.values():
        parameter.data = torch.randn_like(parameter) * 0.2
    golden["lora.logits"] = logits(tuned, *data).detach()
    loss_of(tuned, *data).backward()
    for name, parameter in factors.items():
        key = name.removeprefix("base_model.model.").replace(".default", "")
        golden[f"lora.value.{key}"] = parameter.detach().clone()
        golden[f"lora.gradient.{key}"] = parameter.grad.clone()
    return tuned.unload()


def dequantized(weight):
    """By bitsandbytes' default back end: see make_quant.py."""
    state = weight.quant_state
    absmax = state.absmax
    if state.nested:
        absmax = bnb.functional.dequantize_blockwise(absmax, state.state2) + state.offset
    return _dequantize_4bit_compute(
        weight.data.view(-1), absmax, state.code, state.blocksize, state.shape, state.dtype
    )


def nf4(name, folder, config, data):
    """The folder that transformers saves, and logits over the dequantised weights in f32."""
    target = HERE / f"{name}-nf4"
    shutil.rmtree(target, ignore_errors=True)
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    auto = transformers.AutoModelForSeq2SeqLM if is_t5(config) else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, quantization_config=quantization, dtype=torch.float32, device_map="cpu").eval()
    model.save_pretrained(target)
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, bnb.nn.Linear4bit):
                weight = dequantized(child.weight)
                dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=child.bias is not None)
                dense.weight = torch.nn.Parameter(weight.clone())
                if child.bias is not None:
                    dense.bias = child.bias
                setattr(module, child_name, dense)
    with torch.no_grad():
        golden = dict(ids=data[0], mask=data[1], decoder_ids=data[2], logits=logits(model, *data))
    save_file({k: v.contiguous() for k, v in golden.items()}, target / "golden.safetensors")


def main():
    HERE.mkdir(exist_ok=True)
    chosen = sys.argv[1:] or list(CASES)
    for seed, (name, config) in enumerate(CASES.items()):
        if name not in chosen:
            continue
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model = build(config, seed)
        model.save_pretrained(folder)
        model = type(model).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        data = inputs(config, 100 + seed)
        with torch.no_grad():
            golden = dict(ids=data[0], mask=data[1], decoder_ids=data[2], logits=logits(model, *data))
            golden["greedy"] = greedy(model, data[0], data[1])
        if name in WITH_LORA:
            model = with_lora(model, data, golden)
        save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
        if name in WITH_NF4:
            nf4(name, folder, config, data)
    for folder in sorted(HERE.iterdir()):
        for unneeded in ("generation_config.json", "README.md"):
            (folder / unneeded).unlink(missing_ok=True)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(folder.name, size, json.loads((folder / "config.json").read_text())["model_type"])


main()
