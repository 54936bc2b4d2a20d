"""Makes the PEFT adapters under tests/golden/peft with the real `peft`, on tiny random models.

Run with peft 0.21, transformers 5.23 and bitsandbytes 0.50:  python tests/golden/make_peft.py [NAME ...]
Each folder holds what `save_pretrained` wrote, and `expected.json`: for each adapted module its rank, sizes and scale, and
the L2 norm of scale * B * A, as `peft` itself computes them. Where the base is one of tests/golden/models (made before by
make_models.py), the adapter's config names it, and `logits.safetensors` holds what the model with the adapter says to the
base's golden inputs. `refused-*` are what Tailor must refuse.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # peft would ask the hub for the base's vocabulary
if os.environ.get("PYTHONHASHSEED") != "0":  # peft keeps names in sets and saves them in their order
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})

import bitsandbytes as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, LlamaForCausalLM, T5Config,
                          T5ForConditionalGeneration)

HERE = Path(__file__).parent / "peft"
MODELS = Path(__file__).parent / "models"


def llama():
    config = LlamaConfig(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    return LlamaForCausalLM(config)


def tied_llama():
    config = llama().config
    config.tie_word_embeddings = True
    return LlamaForCausalLM(config)


def bf16_llama():
    return llama().to(torch.bfloat16)


def t5():
    config = T5Config(vocab_size=48, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return T5ForConditionalGeneration(config)


CASES = {
    "llama-all-linear": (llama, dict(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")),
    "llama-patterns": (llama, dict(task_type="CAUSAL_LM", r=4, lora_alpha=8, use_rslora=True, lora_dropout=0.1,
                                   target_modules=["q_proj", "v_proj", "up_proj"], rank_pattern={"v_proj": 2},
                                   alpha_pattern={r"layers\.1\.mlp\.up_proj": 32})),
    "llama-one-layer": (llama, dict(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "o_proj"],
                                    layers_to_transform=[1], exclude_modules=["o_proj"])),
    "t5-attention": (t5, dict(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=16, target_modules=["q", "v"])),
    "t5-regex": (t5, dict(task_type="SEQ_2_SEQ_LM", r=2, lora_alpha=2,
                          target_modules=r".*decoder.*(EncDecAttention\.[qkvo]|DenseReluDense\.w[io]_?[01]?)")),
    # What must be refused, and is real.
    "refused-shared": (t5, dict(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q"], modules_to_save=["shared"])),
    "refused-embedding": (llama, dict(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "embed_tokens"])),
    "refused-positions": (t5, dict(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q"],
                                   modules_to_save=["relative_attention_bias"])),
    "refused-tying": (tied_llama, dict(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"],
                                       modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    # Types of values.
    "llama-bf16": (bf16_llama, dict(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj"], use_dora=True,
                                    modules_to_save=["norm"])),
}

LLAMA = dict(task_type="CAUSAL_LM", r=4, lora_alpha=8)
T5 = dict(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=8)
ON_GOLDEN = {
    "dora-llama": ("llama-gqa", LLAMA | dict(target_modules="all-linear", use_dora=True, use_rslora=True)),
    "dora-nf4": ("llama-gqa-nf4", LLAMA | dict(target_modules="all-linear", use_dora=True)),
    "dora-bias-all": ("qwen2", LLAMA | dict(target_modules=["q_proj", "v_proj", "up_proj"], use_dora=True, bias="all")),
    "dora-t5": ("t5-v11", T5 | dict(target_modules=["q", "v", "wi_0", "wo"], use_dora=True, rank_pattern={"wo": 2})),
    "lora-bias": ("llama-gqa", LLAMA | dict(target_modules=["k_proj", "down_proj"], lora_bias=True)),
    "lora-bias-lora-only": ("llama-tied", LLAMA | dict(target_modules=["q_proj", "down_proj"], lora_bias=True,
                                                       bias="lora_only")),
    "saved-llama": ("llama-gqa", LLAMA | dict(target_modules=["q_proj", "v_proj"],
                                              modules_to_save=["lm_head", "embed_tokens", "norm"])),
    "saved-tied-embedding": ("qwen2", LLAMA | dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    "saved-tied-head": ("t5-tied", T5 | dict(target_modules=["q", "v"], modules_to_save=["lm_head"])),
    "saved-t5": ("t5-v11", T5 | dict(target_modules=["q"], use_dora=True,
                                     modules_to_save=["embed_tokens", "lm_head", "layer_norm"])),
    "saved-layers": ("gemma3", LLAMA | dict(target_modules=["q_proj", "up_proj"],
                                            modules_to_save=["layers.1.mlp", "embed_tokens", "q_norm"])),
    "saved-biases": ("qwen2", LLAMA | dict(target_modules=["q_proj", "k_proj"], modules_to_save=["k_proj"])),
    "patterns-qwen3": ("qwen3", LLAMA | dict(target_modules=["q_proj", "k_proj", "o_proj", "up_proj"], use_rslora=True,
                                             rank_pattern={"k_proj": 2, r"layers\.1\.mlp\.up_proj": 3},
                                             alpha_pattern={"o_proj": 32}, layers_to_transform=[1],
                                             layers_pattern=["layers"], exclude_modules=["q_proj"])),
    "patterns-t5": ("t5-v11", T5 | dict(target_modules=r".*coder\.block\.\d+\..*(Attention\.[qv]|\.wi_1)",
                                        exclude_modules=r"encoder\.block\.0\..*", use_rslora=True,
                                        rank_pattern={r"decoder.*\.v": 2, "v": 3},
                                        alpha_pattern={r"block\.1\..*\.wi_1": 24})),
    "patterns-t5-blocks": ("t5-v11", T5 | dict(target_modules=["q", "o", "wi_0"], layers_to_transform=1,
                                               layers_pattern=["block", "layer"])),
    "head-untied": ("llama-gqa", LLAMA | dict(target_modules=["v_proj", "lm_head"], use_dora=True)),
    "head-tied": ("qwen2", LLAMA | dict(target_modules=["v_proj", "lm_head"])),
}


# An encoder-decoder's has twice the embeddings that are used, unless the config says otherwise.
PROMPTS = {
    "prompt-llama": ("llama-gqa-nf4", dict(task_type="CAUSAL_LM", num_virtual_tokens=5)),
    "prompt-gemma3": ("gemma3", dict(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prompt-t5": ("t5-v11", dict(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)),
    "prompt-mt5": ("mt5", dict(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2, num_transformer_submodules=1)),
}


def config(options):
    return (PromptTuningConfig if "num_virtual_tokens" in options else LoraConfig)(**options)


def expected(model):
    modules = {}
    if isinstance(model.peft_config["default"], PromptTuningConfig):
        return modules
    for name, module in model.base_model.model.named_modules():
        if not isinstance(module, LoraLayer) or not module.lora_A:  # LoRA on an embedding is in other fields
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        modules[name] = dict(rank=a.shape[0], in_features=a.shape[1], out_features=b.shape[0],
                             scale=module.scaling["default"],
                             delta_norm=torch.linalg.norm(module.get_delta_weight("default").double()).item())
    return modules


def trained(model):
    """What starts at zero or at the base's own values is moved, as training would."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.2 * parameter.std().clamp_min(0.2) * torch.randn_like(parameter))
    return model


def on_golden(base, options):
    auto = AutoModelForSeq2SeqLM if options["task_type"] == "SEQ_2_SEQ_LM" else AutoModelForCausalLM
    return auto.from_pretrained(MODELS / base, attn_implementation="eager", dtype=torch.float32)


def dense(model):
    """The same with every 4-bit layer dequantised in f32: on the CPU bitsandbytes runs none as narrow as ours."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, bnb.nn.Linear4bit):
                weight, state = child.weight, child.weight.quant_state
                absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
                values = _dequantize_4bit_compute(weight.data.view(-1), absmax, state.code, state.blocksize, state.shape,
                                                  state.dtype)
                linear = torch.nn.Linear(*reversed(values.shape), bias=child.bias is not None)
                linear.load_state_dict({"weight": values} | ({} if child.bias is None else {"bias": child.bias}))
                setattr(module, name, linear)
    return model


@torch.no_grad()
def logits(model, base):
    data = load_file(MODELS / base / "golden.safetensors")
    extra = dict(decoder_input_ids=data["decoder_ids"]) if model.config.is_encoder_decoder else {}
    said = model.eval()(input_ids=data["ids"], attention_mask=data["mask"], use_cache=False, **extra).logits
    # Of a decoder's own input: the virtual tokens before it have logits too.
    return said if extra else said[:, -data["ids"].shape[1]:]


def make(number, name, make_base, options, base=None):
    torch.manual_seed(number)
    model = trained(get_peft_model(make_base(), config(options)))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    if base is not None:
        model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    with open(folder / "expected.json", "w") as file:
        json.dump(expected(model), file, indent=1, sort_keys=True)
        file.write("\n")
    return model, folder


def main():
    on_bases = ON_GOLDEN | PROMPTS
    chosen = sys.argv[1:] or [*CASES, *on_bases]
    for number, (name, (base, options)) in enumerate(CASES.items()):
        if name in chosen:
            make(number, name, base, options)
    for number, (name, (base, options)) in enumerate(on_bases.items()):
        if name not in chosen:
            continue
        _, folder = make(100 + number, name, lambda: on_golden(base, options), options, base)
        # What counts is what the folder means to whoever loads it.
        loaded = PeftModel.from_pretrained(dense(on_golden(base, options)), folder)
        said = logits(loaded, base)
        with loaded.disable_adapter():
            moved = (said - logits(loaded, base)).abs().max() / said.abs().max()
        assert moved > 1e-2, (name, moved)
        save_file({"logits": said.contiguous()}, folder / "logits.safetensors")
        print(f"{name}: the adapter moves a logit by up to {moved:.2f} of the largest")


if __name__ == "__main__":
    main()
