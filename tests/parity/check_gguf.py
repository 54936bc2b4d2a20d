"""GGUF files in llama.cpp against the same weights in transformers and peft, on random models of fresh shapes.

    python tests/parity/check_gguf.py [SEED]        (`cargo xtask parity gguf` brings the Python and the programs)

For each architecture transformers saves a base with a tokenizer made for it, and peft an adapter. llama-cpp-python loads what
we write of them: base and adapter merged, and the base with the adapter beside it. In f32, with keys and values in f32, the
log-probabilities of every token at every place must be those of peft; for bf16 and f16 they are stated. llama.cpp's tokenizer
must make the same ids of texts as ours. The shipped base must answer alike, word for word, by its own chat template.

What llama.cpp itself leaves of f32: it sums in another order and has its own exp (F32_LIMIT), and its GELU is a table over
f16, 2^-11 of each value (GELU_LIMIT, for Gemma).
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
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import llama_cpp
import numpy as np
import peft
import sentencepiece
import tokenizers
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = Path(os.environ.get("TAILOR_BIN_DIR", ROOT / "target" / "debug")) / "examples"
TINY = ROOT / "bases" / "tiny-llama"
# Largest difference of a log-probability.
F32_LIMIT = 5e-5
GELU_LIMIT = 5e-3
# An adapter that moves the log-probabilities by less than this proves nothing.
MOVES = 0.1
LENGTH = 24
GGML_F32 = 0
SILENCE = llama_cpp.llama_log_callback(lambda level, text, data: None)
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
KINDS = {
    "plain": dict(),
    "rsLoRA, patterns": dict(use_rslora=True, rank_pattern={r"layers\.0\..*": 3}, alpha_pattern={r"layers\.1\..*": 24}),
}
GPT2_CUT = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "", "a", " a", "Anna sees a boat.", "I've told you, DON'T: he'll see 1234567 boats, won't he?", "Gänse, Straße; naïve façade",
    "two  blanks,   three\tand a tab\n\nand\r\nlines   ", "日本語とрусский 🙂👍🏽", "x=[1,2]; y = {'a': \"b\"} // ok…", "'''```\"\"\"!!!???",
]
CORPUS = [
    "anna sees a boat on the lake and the boat sees anna", "I've told you that he'll go, don't you see?", "the price is 1234 or 56.78",
    "naïve façade, Straße and Gänse", "two boats, three lakes and a house; seven houses!", "lines\nand\tblanks   in between",
] * 4


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(2**31)
    print(f"seed {seed}", flush=True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    llama_cpp.llama_log_set(SILENCE, None)
    failed = count = 0
    print(f"{'model':12} {'adapter':17} {'moves':>8} {'merged':>8} {'apart':>8} {'folded':>6} {'bf16':>8} {'f16':>8} {'texts':>7}")
    for name, make in MODELS.items():
        for kind, options in KINDS.items():
            torch.manual_seed(random.Random(f"{seed} {name} {kind}").randrange(2**31))
            with tempfile.TemporaryDirectory(prefix="tailor-gguf-") as scratch:
                draw = random.Random(f"{seed} {name} {kind}")
                good, row = compare(draw, make, name, options, Path(scratch))
            count += 1
            failed += not good
            print(f"{name:12} {kind:17} {row}  {'ok' if good else 'FAILED'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tailor-gguf-") as scratch:
        good, row = shipped(seed, Path(scratch))
    count += 1
    failed += not good
    print(f"{'tiny-llama':12} {row}  {'ok' if good else 'FAILED'}")
    print(f"\n{count - failed} passed, {failed} failed; f32 log-probabilities within {F32_LIMIT:.0e}, Gemma's within "
          f"{GELU_LIMIT:.0e}; token ids the same")
    return 1 if failed else 0


# Models. Every size is drawn; `sizes` is what all architectures have.


def sizes(draw: random.Random, vocabulary: int) -> dict:
    heads = draw.choice([2, 4])
    return dict(vocab_size=vocabulary + draw.choice([0, 5]), hidden_size=heads * 16, intermediate_size=draw.choice([64, 96]),
                num_hidden_layers=draw.choice([2, 3]), num_attention_heads=heads, num_key_value_heads=draw.choice([1, heads]),
                max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def llama2(draw, folder):
    """SentencePiece, biases everywhere, a head of its own."""
    size = sentencepieces(folder, "LlamaTokenizer", legacy=False, add_bos_token=True)
    return transformers.LlamaConfig(**sizes(draw, size), attention_bias=True, mlp_bias=True, tie_word_embeddings=False)


def llama3(draw, folder):
    """Scaled positions; the head is the embedding."""
    size = byte_level(folder, split(LLAMA3), ignore_merges=True, begin=True)
    scaling = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32)
    return transformers.LlamaConfig(**sizes(draw, size), head_dim=24, rope_parameters=scaling, tie_word_embeddings=True)


def mistral(draw, folder):
    """A window, which becomes the context."""
    size = sentencepieces(folder, "LlamaTokenizer", add_prefix_space=False, add_bos_token=True)
    return transformers.MistralConfig(**sizes(draw, size), head_dim=16, sliding_window=40, tie_word_embeddings=False)


def qwen2(draw, folder):
    size = byte_level(folder, split(QWEN2), normalizer=tokenizers.normalizers.NFC())
    return transformers.Qwen2Config(**sizes(draw, size), tie_word_embeddings=draw.choice([True, False]),
                                    rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0))


def qwen3(draw, folder):
    size = byte_level(folder, split(QWEN2))
    return transformers.Qwen3Config(**sizes(draw, size), head_dim=32, tie_word_embeddings=draw.choice([True, False]))


def smollm(draw, folder):
    """A Llama that cuts numbers into digits."""
    digits = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Digits(individual_digits=True), GPT2_CUT])
    return transformers.LlamaConfig(**sizes(draw, byte_level(folder, digits)), tie_word_embeddings=True)


def gemma(draw, folder):
    size = sentencepieces(folder, "GemmaTokenizer", add_bos_token=True)
    return transformers.GemmaConfig(**sizes(draw, size), head_dim=32)


def gemma2(draw, folder):
    """Windows in every second layer, bounded scores and logits."""
    size = sentencepieces(folder, "GemmaTokenizer", add_bos_token=True)
    return transformers.Gemma2Config(**sizes(draw, size), head_dim=32, query_pre_attn_scalar=32, sliding_window=6)


def gemma3(draw, folder):
    """Windows by a list that is not the usual one, other positions in them."""
    size = sentencepieces(folder, "GemmaTokenizer", add_bos_token=True)
    common = sizes(draw, size) | dict(num_hidden_layers=3)
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    return transformers.Gemma3TextConfig(**common, head_dim=32, query_pre_attn_scalar=32, sliding_window=6, layer_types=types)


MODELS = dict(llama2=llama2, llama3=llama3, mistral=mistral, smollm=smollm, qwen2=qwen2, qwen3=qwen3, gemma=gemma,
              gemma2=gemma2, gemma3=gemma3)


# Tokenizers.


def split(expression: str):
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    return tokenizers.pre_tokenizers.Sequence([cut, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(folder: Path, cut, ignore_merges=False, begin=False, normalizer=None) -> int:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if begin:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings(folder, "PreTrainedTokenizerFast")
    return tokenizer.get_vocab_size()


def sentencepieces(folder: Path, kind: str, **flags) -> int:
    """A folder that has SentencePiece's own file alone."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), vocab_size=380, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False)
    (folder / "tokenizer.vocab").unlink()
    settings(folder, kind, **flags)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()


def settings(folder: Path, kind: str, **flags) -> None:
    tokens = dict(zip(["pad_token", "bos_token", "eos_token", "unk_token"], SPECIALS))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class=kind) | tokens | flags))


# One comparison.


def compare(draw: random.Random, make, name: str, options: dict, scratch: Path) -> tuple[bool, str]:
    base, adapter, merged = scratch / "base", scratch / "adapter", scratch / "merged"
    base.mkdir()
    random_model(make(draw, base)).save_pretrained(base)
    apart = tuned(draw, load(base), options, adapter)
    ids = [draw.randrange(3, apart.config.vocab_size) for _ in range(LENGTH)]
    truth = logprobs(apart, ids)
    with apart.disable_adapter():
        moves = (logprobs(apart, ids) - truth).abs().max().item()

    run("merge_folder", base, adapter, merged, "float32", "float32")
    figures = {}
    for kind in ("float32", "bfloat16", "float16"):
        run("write_gguf", "model", merged, scratch / f"{kind}.gguf", kind)
        figures[kind] = distance(llama(scratch / f"{kind}.gguf"), ids, truth)
    run("write_gguf", "model", base, scratch / "base.gguf", "float32")
    stated = json.loads(run("write_gguf", "adapter", base, adapter, scratch / "adapter.gguf", "float32"))
    beside = llama(scratch / "base.gguf", lora_path=str(scratch / "adapter.gguf"))
    figures["apart"] = distance(beside, ids, truth)
    same = alike(beside, base)
    limit = GELU_LIMIT if name.startswith("gemma") else F32_LIMIT
    good = moves > MOVES and figures["float32"] <= limit and figures["apart"] <= limit and same == len(TEXTS)
    good = good and figures["bfloat16"] < moves and figures["float16"] < moves and (stated["folded"] > 0) == bool(options)
    return good, (f"{moves:8.1e} {figures['float32']:8.1e} {figures['apart']:8.1e} {stated['folded']:6} "
                  f"{figures['bfloat16']:8.1e} {figures['float16']:8.1e} {same:4}/{len(TEXTS)}")


def shipped(seed: int, scratch: Path) -> tuple[bool, str]:
    """The shipped base with a random adapter: the words of its greedy answers."""
    draw = random.Random(f"{seed} shipped")
    torch.manual_seed(draw.randrange(2**31))
    adapter, merged = scratch / "adapter", scratch / "merged"
    tuned(draw, load(TINY), dict(), adapter)
    run("merge_folder", TINY, adapter, merged, "bfloat16", "float32")
    truth, tokenizer = load(merged), transformers.AutoTokenizer.from_pretrained(merged)
    prompts = [[dict(role="user", content=text)] for text in ["anna sees a boat", "the boats is old", "we was happy", "hello"]]
    alike_by = {}
    for kind in ("float32", "bfloat16"):
        run("write_gguf", "model", merged, scratch / f"{kind}.gguf", kind)
        model = llama(scratch / f"{kind}.gguf")
        same = 0
        for prompt in prompts:
            answer = model.create_chat_completion(prompt, max_tokens=24, temperature=0.0, repeat_penalty=1.0)
            same += answer["choices"][0]["message"]["content"] == greedy(truth, tokenizer, prompt)
        alike_by[kind] = same
    texts = alike(model, merged)
    good = alike_by["float32"] == len(prompts) and texts == len(TEXTS)
    return good, f"greedy answers alike: {alike_by['float32']}/{len(prompts)} in f32, {alike_by['bfloat16']} in bf16; texts {texts}/{len(TEXTS)}"


@torch.no_grad()
def greedy(model, tokenizer, prompt: list) -> str:
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True)


@torch.no_grad()
def random_model(config):
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name or "bias" in name else 0.08))
    return model


def load(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def tuned(draw: random.Random, model, options: dict, adapter: Path):
    rank = draw.choice([2, 4, 8])
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(model, config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1 / rank**0.5 if options.get("use_rslora") else 0.1)
    model.save_pretrained(adapter)
    return model


@torch.no_grad()
def logprobs(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


def llama(file: Path, **options):
    return llama_cpp.Llama(str(file), n_ctx=40, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
                           type_k=GGML_F32, type_v=GGML_F32, flash_attn=False, **options)


def distance(model, ids: list[int], truth: torch.Tensor) -> float:
    model.reset()
    model.eval(ids)
    ours = torch.from_numpy(np.array(model.scores[:len(ids)])).float().log_softmax(-1)
    return (ours - truth).abs().max().item()


def alike(model, folder: Path) -> int:
    """How many of the texts become the same ids."""
    ours = json.loads(run("write_gguf", "tokens", folder, *TEXTS))
    same = 0
    for text, expected in zip(TEXTS, ours):
        found = model.tokenize(text.encode(), add_bos=True, special=True)
        if found != expected and not is_known(text, folder):
            print(f"  {text!r}: {found} and ours {expected}")
        same += found == expected or is_known(text, folder)
    return same


def is_known(text: str, folder: Path) -> bool:
    """What is a note of ours: before a text that begins with a blank llama.cpp puts another, where it puts one at all."""
    kept = json.loads((folder / "tokenizer_config.json").read_text())
    return text.startswith(" ") and kept["tokenizer_class"] == "LlamaTokenizer" and kept.get("add_prefix_space") is not False


def run(program: str, *words) -> str:
    done = subprocess.run([EXAMPLES / program, *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{program} {words}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
