"""DPO's loss and the gradient of every LoRA matrix equal TRL's, on the same pairs.

    python tests/parity/check_preference.py [SEED]        (`cargo xtask parity preference` brings Python and programs)

A random-weight Llama with a random adapter of peft is given to `trl.DPOTrainer`, which tokenises a few pairs, takes the base
with the adapter switched off as the reference, and makes loss and gradients. Tailor's trainer gets the token ids that TRL
trained on. Both in f32. Every run draws fresh shapes, pairs and settings; the seed printed repeats it.
"""

import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import datasets
import peft
import tokenizers
import torch
import transformers
import trl

ROOT = Path(__file__).resolve().parents[2]
LOSS_LIMIT = 1e-5  # of the loss, or of a coin's where that is larger; only the order of sums differs
COIN = 0.693
GRADIENT_LIMIT = 1e-3  # of the largest number of the same matrix
VOCABULARY = 128
EOS = 1
KINDS = ["plain", "with the chosen answers' own loss", "smoothed"]
ROUNDS = 6


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(2**31)
    print(f"seed {seed}, trl {trl.__version__}", flush=True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    datasets.disable_progress_bars()
    draw = random.Random(seed)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="tailor-preference-") as scratch:
        for round_ in range(ROUNDS):
            failures += check(draw, Path(scratch) / str(round_), round_)
    print("every round within its limits" if failures == 0 else f"{failures} rounds over their limits")
    return 1 if failures else 0


def check(draw: random.Random, folder: Path, round_: int) -> int:
    torch.manual_seed(draw.randrange(2**31))
    heads = draw.choice([2, 4])
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16 * heads, intermediate_size=draw.choice([48, 96]),
        num_hidden_layers=draw.choice([1, 2, 3]), num_attention_heads=heads, num_key_value_heads=draw.choice([1, heads]),
        max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=EOS,
        tie_word_embeddings=draw.random() < 0.5, initializer_range=0.2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    base = folder / "base"
    model.save_pretrained(base)
    kind = KINDS[round_ % len(KINDS)]
    settings, pairs, loss, theirs = by_trl(model, draw, kind, folder)
    (folder / "pairs.json").write_text(json.dumps({"preference": settings, "pairs": pairs}))
    program = Path(os.environ["TAILOR_BIN_DIR"]) / "examples" / "probe_preference"
    out = folder / "out.json"
    subprocess.run([program, base, folder / "adapter", folder / "pairs.json", out], check=True)
    ours = json.loads(out.read_text())
    loss_error = abs(ours["loss"] - loss) / max(abs(loss), COIN)
    assert ours["gradient"].keys() == theirs.keys(), sorted(ours["gradient"].keys() ^ theirs.keys())[:4]
    worst = 0.0
    for name, wanted in theirs.items():
        got = torch.tensor(ours["gradient"][name]).view_as(wanted)
        worst = max(worst, ((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)).item())
    bad = loss_error > LOSS_LIMIT or worst > GRADIENT_LIMIT
    print(
        f"round {round_}, {kind}: {len(pairs)} pairs, beta {settings['beta']}: loss "
        f"{loss:.6f}, ours off by {loss_error:.1e}; worst of {len(theirs)} gradients {worst:.1e}"
        + ("  OVER" if bad else ""),
        flush=True,
    )
    return int(bad)


def by_trl(model, draw: random.Random, kind: str, folder: Path) -> tuple[dict, list, float, dict]:
    """Gives the model a random adapter, saved in `folder`/adapter, and a few pairs. Settings, the pairs as ids, TRL's loss, and
    its gradient of every LoRA matrix."""
    lora = peft.LoraConfig(
        r=draw.choice([2, 5]), lora_alpha=8, target_modules="all-linear", use_rslora=draw.random() < 0.5,
        task_type="CAUSAL_LM", init_lora_weights=False,
    )
    tuned = peft.get_peft_model(model, lora)
    tuned.save_pretrained(folder / "adapter")
    settings = dict(beta=draw.choice([0.1, 0.7]), label_smoothing=0.0, sft_weight=0.0)
    count = draw.choice([3, 6])
    theirs_too = dict(loss_type=["sigmoid"])
    if kind == "with the chosen answers' own loss":
        settings["sft_weight"] = draw.choice([0.3, 1.0])
        theirs_too = dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, settings["sft_weight"]])
    elif kind == "smoothed":
        # TRL smooths no sigmoid loss; its AOT loss is the smoothed one where there is one pair and nothing to sort.
        settings["label_smoothing"], count = draw.choice([0.05, 0.2]), 1
        theirs_too = dict(loss_type=["aot"], label_smoothing=settings["label_smoothing"])
    vocabulary = model.config.vocab_size
    pairs = [pair(draw, vocabulary) for _ in range(count)]
    trainer = trl.DPOTrainer(
        model=tuned,
        args=trl.DPOConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=len(pairs), report_to=[], use_cpu=True,
            gradient_checkpointing=False, disable_dropout=True, max_length=64, bf16=False, fp16=False,
            dataloader_num_workers=0, remove_unused_columns=False,
            beta=settings["beta"], **theirs_too,
        ),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer(vocabulary),
    )
    # TRL takes the adapter as it was at the start for the reference, in a copy named "ref". Ours is the base: no copy.
    for name, parameter in tuned.named_parameters():
        if ".ref." in name and "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    batch = next(iter(trainer.get_train_dataloader()))
    tuned.zero_grad()
    loss = trainer.compute_loss(tuned, batch)
    loss.backward()
    theirs = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in tuned.named_parameters()
        if parameter.grad is not None
    }
    return settings, ids_of(batch), loss.item(), theirs


def pair(draw: random.Random, vocabulary: int) -> dict[str, str]:
    words = lambda most: " ".join(f"w{draw.randrange(3, vocabulary)}" for _ in range(draw.randint(1, most)))
    return {"prompt": words(8), "chosen": " " + words(6), "rejected": " " + words(6)}


def tokenizer(vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """One token a word."""
    words = {"<pad>": 0, "</s>": EOS, "<unk>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def ids_of(batch: dict) -> list[dict[str, list[int]]]:
    """What TRL trained on: it lays the chosen rows over the rejected ones; the completion mask marks the answers."""
    rows = []
    for ids, attention, completion in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"]):
        real = [(int(i), bool(c)) for i, a, c in zip(ids, attention, completion) if a]
        rows.append(([i for i, c in real if not c], [i for i, c in real if c]))
    half = len(rows) // 2
    pairs = []
    for (prompt, chosen), (other, rejected) in zip(rows[:half], rows[half:]):
        assert prompt == other
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


if __name__ == "__main__":
    sys.exit(main())
