"""A merged folder in transformers against peft's base and adapter, on random models of fresh shapes.

    python tests/parity/check_merge.py [SEED]        (`cargo xtask parity merge` brings the Python and the programs)

For a Llama and a T5, each with the head tied and not, transformers saves a base and peft an adapter of every kind; ours merges
the two, and transformers loads what came out, with no tensor missing, unexpected or of another shape. In f32 the logits must be
those of the two apart. For bf16 and NF4 (read by bitsandbytes) they are stated, and the difference that the merge itself states
must be the one that torch finds between the loaded weights.
"""

import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling what turns 4 bits back would take longer than all the rest

import bitsandbytes as bnb
import peft
import torch
import transformers
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

ROOT = Path(__file__).resolve().parents[2]
MERGE = Path(os.environ.get("TAILOR_BIN_DIR", ROOT / "target" / "debug")) / "examples" / "merge_folder"
# Largest difference over the largest logit.
F32_LIMIT = 1e-5
# An adapter that moves the logits by less than this proves nothing.
MOVES = 1e-2
# The error over the update, and the share of it that survives: ours against torch's.
STATED_LIMIT = 1e-6
KINDS = {
    "plain": dict(),
    "rsLoRA, patterns": dict(use_rslora=True, rank_pattern={r"(layers|block)\.0\..*": 3}, alpha_pattern={r"(layers|block)\.1\..*": 24}),
    "DoRA": dict(use_dora=True),
    "head": dict(modules_to_save=["lm_head"]),
}
LLAMA_KINDS = {
    "embedding, norms": dict(modules_to_save=["embed_tokens", "norm"]),
    "biases": dict(lora_bias=True),
}


def llama(draw: random.Random, tied: bool):
    heads = draw.choice([2, 4])
    config = transformers.LlamaConfig(
        vocab_size=draw.randrange(70, 160), hidden_size=heads * 16, intermediate_size=draw.choice([64, 96]),
        num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=draw.choice([1, heads]),
        max_position_embeddings=128, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return transformers.LlamaForCausalLM(config)


def t5(draw: random.Random, tied: bool):
    config = transformers.T5Config(
        vocab_size=draw.randrange(70, 160), d_model=draw.choice([32, 64]), d_kv=16, d_ff=64, num_layers=2,
        num_decoder_layers=2, num_heads=2, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        tie_word_embeddings=tied, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) * 0.2)
    return model


FAMILIES = {"llama": llama, "t5": t5}


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(2**31)
    print(f"seed {seed}", flush=True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    failed = count = 0
    print(f"{'family':6} {'head':7} {'adapter':17} {'moves':>8} {'f32':>8} {'bf16':>8} {'kept':>8} {'nf4':>8} {'kept':>8}")
    for family in FAMILIES:
        for tied in (False, True):
            for kind, options in (KINDS | (LLAMA_KINDS if family == "llama" else {})).items():
                torch.manual_seed(draw_seed(seed, family, tied, kind))
                with tempfile.TemporaryDirectory(prefix="tailor-merge-") as scratch:
                    draw = random.Random(f"{seed} {family} {tied} {kind}")
                    good, row = compare(draw, family, tied, options, Path(scratch))
                count += 1
                failed += not good
                head = "tied" if tied else "untied"
                print(f"{family:6} {head:7} {kind:17} {row}  {'ok' if good else 'FAILED'}", flush=True)
    print(f"\n{count - failed} passed, {failed} failed; f32 <= {F32_LIMIT:.0e} of the largest logit; what is stated within "
          f"{STATED_LIMIT:.0e}")
    return 1 if failed else 0


def draw_seed(*parts) -> int:
    return random.Random(" ".join(map(str, parts))).randrange(2**31)


def compare(draw: random.Random, family: str, tied: bool, options: dict, scratch: Path) -> tuple[bool, str]:
    base, adapter = scratch / "base", scratch / "adapter"
    FAMILIES[family](draw, tied).save_pretrained(base)
    tuned = peft.get_peft_model(load(family, base), lora(family, draw, options))
    train_a_little(tuned)
    tuned.save_pretrained(adapter)
    apart = peft.PeftModel.from_pretrained(load(family, base), adapter).eval()
    inputs = ids(draw, apart.config)
    truth = logits(apart, inputs)
    with apart.disable_adapter():
        moves = distance(logits(apart, inputs), truth)

    weights = {"base": state(load(family, base))}
    figures, kept, good = {}, {}, moves > MOVES
    for name, words in {"f32": ["float32"], "bf16": ["bfloat16"], "nf4": ["bfloat16", "nf4"]}.items():
        report = merge(base, adapter, scratch / name, words)
        loaded = dequantised(family, scratch / name) if name == "nf4" else load(family, scratch / name)
        figures[name], kept[name], weights[name] = distance(logits(loaded, inputs), truth), report["survives"], state(loaded)
        error, survives = stated(weights["base"], weights["f32"], weights[name])
        good = good and abs(error - report["error_of_update"]) <= STATED_LIMIT * max(error, 1e-3)
        good = good and abs(survives - report["survives"]) <= STATED_LIMIT
    good = good and figures["f32"] <= F32_LIMIT and kept["f32"] == 1.0 and figures["bf16"] < moves
    return good, (f"{moves:8.1e} {figures['f32']:8.1e} {figures['bf16']:8.1e} {kept['bf16']:7.2%} "
                  f"{figures['nf4']:8.1e} {kept['nf4']:7.2%}")


def state(model) -> dict:
    return {name: tensor.double() for name, tensor in model.state_dict().items()}


def stated(base: dict, merged: dict, written: dict) -> tuple[float, float]:
    """Over the tensors that the adapter changes: the error over the update, and the share of the update that survives."""
    update = error = kept = 0.0
    for name, exact in merged.items():
        before = base.get(name, torch.zeros_like(exact))  # a bias that the base has not
        if not torch.equal(exact, before):
            update += (exact - before).square().sum().item()
            error += (written[name] - exact).square().sum().item()
            kept += ((written[name] - before) * (exact - before)).sum().item()
    return (error / update) ** 0.5, kept / update


def lora(family: str, draw: random.Random, options: dict) -> peft.LoraConfig:
    task = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    rank = draw.choice([2, 4, 8])
    return peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=task, **options)


def load(family: str, folder: Path, dtype=torch.float32):
    """With every tensor of the folder in the model, and every one of the model from the folder."""
    auto = transformers.AutoModelForSeq2SeqLM if family == "t5" else transformers.AutoModelForCausalLM
    model, found = auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    wrong = {what: names for what, names in found.items() if names}
    if wrong:
        raise SystemExit(f"{folder.name}: {wrong}")
    return model.eval()


@torch.no_grad()
def dequantised(family: str, folder: Path):
    """As bitsandbytes reads it, its 4-bit layers as plain ones in f32."""
    model = load(family, folder)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, bnb.nn.Linear4bit):
                weight, state = child.weight, child.weight.quant_state
                absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
                # On the CPU `dequantize_4bit` is not for layers as narrow as these.
                values = _dequantize_4bit_compute(weight.data.view(-1), absmax, state.code, state.blocksize, state.shape,
                                                  state.dtype).float()
                linear = torch.nn.Linear(*reversed(values.shape), bias=child.bias is not None)
                linear.load_state_dict({"weight": values} | ({} if child.bias is None else {"bias": child.bias.float()}))
                setattr(module, name, linear)
    return torch.nn.Module.float(model)  # no longer quantised, whatever its own `float` says


@torch.no_grad()
def train_a_little(tuned) -> None:
    """What starts at zero or at the base's own values is moved."""
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        elif "magnitude" in name:
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
        elif parameter.requires_grad and "lora_" not in name:
            parameter.add_(0.2 * parameter.std().clamp_min(0.1) * torch.randn_like(parameter))


def ids(draw: random.Random, config) -> dict:
    rows = lambda length: torch.tensor([[draw.randrange(3, config.vocab_size) for _ in range(length)] for _ in range(3)])
    inputs = dict(input_ids=rows(12))
    return inputs | (dict(decoder_input_ids=rows(9)) if config.is_encoder_decoder else {})


@torch.no_grad()
def logits(model, inputs: dict) -> torch.Tensor:
    return model(**inputs, use_cache=False).logits.float()


def distance(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours - truth).abs().max() / truth.abs().max()).item()


def merge(base: Path, adapter: Path, target: Path, words: list[str]) -> dict:
    done = subprocess.run([MERGE, base, adapter, target, "float32", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"merge_folder {words}: {done.stderr}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
