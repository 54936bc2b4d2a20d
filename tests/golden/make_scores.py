"""Writes tests/golden/scores/{llama,t5}: a tiny base, a PEFT adapter, and what peft says of some token ids on it.

Run with a Python that has torch 2.11, transformers 5.23, peft 0.21, bitsandbytes 0.50 (`cargo xtask parity` makes one):

    python tests/golden/make_scores.py

`base/` is a plain f32 Hugging Face folder. Each of its linear layers (T5's `wo` and the heads apart) is quantised to NF4
with double quantisation and back by bitsandbytes; on that, in f32, `scores.json` holds the log-probability of each token
with the adapter and without. `tests/it/golden.rs` asks `tailor score` for the same.
"""

import json
import shutil
from pathlib import Path

import bitsandbytes.functional as F
import peft
import torch
import transformers
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

HERE = Path(__file__).parent / "scores"
SPECIALS = ["<pad>", "</s>", "<unk>"]
VOCABULARY = 128

CONFIGS = {
    "llama": transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        tie_word_embeddings=False,
    ),
    "t5": transformers.T5Config(
        vocab_size=VOCABULARY, d_model=48, d_kv=12, d_ff=80, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0.0, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    ),
}


def main() -> None:
    for seed, (family, config) in enumerate(CONFIGS.items()):
        folder = HERE / family
        shutil.rmtree(folder, ignore_errors=True)
        model = random_model(config, seed)
        model.save_pretrained(folder / "base")
        (folder / "base" / "generation_config.json").unlink(missing_ok=True)
        write_tokenizer(folder / "base")

        through_nf4(model)
        tuned = random_adapter(model, seed)
        tuned.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)
        cases = [score(tuned, *ids) for ids in token_ids(config, seed)]
        (folder / "scores.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
        worst = max(abs(a - b) for c in cases for a, b in zip(c["with_adapter"], c["base_alone"]) if a is not None)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{family}: {len(cases)} cases, the adapter moves a score by up to {worst:.2f}, {size} bytes")


def is_t5(config) -> bool:
    return config.model_type == "t5"


def random_model(config, seed: int):
    torch.manual_seed(seed)
    auto = transformers.AutoModelForSeq2SeqLM if is_t5(config) else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if "relative_attention_bias" in name else parameter.shape[-1] ** -0.5
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else scale * noise)
    if is_t5(config):  # transformers 5 ties T5's head unless the checkpoint has one of its own
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, config.d_model) * config.d_model**-0.5)
    return model


def through_nf4(model) -> None:
    """Every quantised layer's weight becomes what its NF4 form stands for."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name.endswith(("lm_head", ".wo")):
            continue
        weight = module.weight.data
        packed, state = F.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
        module.weight.data = _dequantize_4bit_compute(
            packed.view(-1), absmax, state.code, state.blocksize, weight.shape, torch.float32
        )


def random_adapter(model, seed: int):
    kind = "SEQ_2_SEQ_LM" if is_t5(model.config) else "CAUSAL_LM"
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=kind, init_lora_weights=False)
    torch.manual_seed(1000 + seed)
    return peft.get_peft_model(model, config).eval()


def token_ids(config, seed: int):
    """(prompt, tokens): for T5 what the encoder and the decoder read, for a decoder a prefix and what follows."""
    generator = torch.Generator().manual_seed(2000 + seed)
    lengths = [(6, 5), (1, 1), (20, 12), (11, 3)] + ([] if is_t5(config) else [(0, 9), (0, 40)])
    draw = lambda count: torch.randint(3, 98, (count,), generator=generator).tolist()
    return [(draw(prompt), draw(tokens)) for prompt, tokens in lengths]


@torch.no_grad()
def score(tuned, prompt: list[int], tokens: list[int]) -> dict:
    with_adapter = log_probabilities(tuned, prompt, tokens)
    with tuned.disable_adapter():
        base_alone = log_probabilities(tuned, prompt, tokens)
    return {"prompt_ids": prompt, "token_ids": tokens, "with_adapter": with_adapter, "base_alone": base_alone}


def log_probabilities(model, prompt: list[int], tokens: list[int]) -> list:
    if is_t5(model.config):
        decoder_ids = torch.tensor([[model.config.decoder_start_token_id, *tokens[:-1]]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder_ids, use_cache=False).logits[0]
        unpredicted = []
    else:
        logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0]
        logits = logits[-len(prompt + tokens):]  # virtual tokens before the input have logits too
        # The logits at one position are about the next; a stream's first token has nothing before it.
        unpredicted = [] if prompt else [None]
        logits = logits[max(len(prompt) - 1, 0):-1]
    scored = tokens[len(unpredicted):]
    chosen = logits.log_softmax(-1)[range(len(scored)), scored]
    return unpredicted + [round(value, 6) for value in chosen.double().tolist()]


def write_tokenizer(folder: Path) -> None:
    """One token a character; the scores are asked for by ids."""
    characters = [chr(code) for code in range(ord(" "), ord("~") + 1)]
    vocabulary = {text: number for number, text in enumerate(SPECIALS + characters)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": text, **flags} for number, text in enumerate(SPECIALS)]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocabulary, "merges": []}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                 "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>",
                "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    main()
