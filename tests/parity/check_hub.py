"""peft and transformers load what Tailor published by pointing HF_ENDPOINT at the registry, and say what Tailor says.

    python tests/parity/check_hub.py [SEED]        (`cargo xtask parity hub` brings the Python and the programs)

`tailor` registers a shipped base, trains a short LoRA and a short prompt, and moves an alias. Then, in a Python that knows
nothing but the registry's address: `PeftModel.from_pretrained` loads each adapter by alias and by number, `AutoTokenizer` the
tokenizer beside it, and `AutoModel…from_pretrained` the 4-bit base under the very name that the adapter's config gives. The
scores of a few texts are compared with `tailor score`.
"""

import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
from check_peft import F32_LIMIT, SHIPPED, System, dequantised, differences  # noqa: E402
from make_scores import log_probabilities  # noqa: E402

METHODS = {"lora": {"lora": {"rank": 4}}, "prompt": {"prompt_tuning": {"virtual_tokens": 4}, "train": {"learning_rate": 0.3}}}


def main() -> int:
    if sys.argv[1:2] == ["--read"]:
        return read(*sys.argv[2:])
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(2**31)
    print(f"seed {seed}", flush=True)
    draw = random.Random(seed)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="tailor-hub-") as scratch:
        system = System(Path(scratch))
        try:
            system.push_rows()
            for family in ("t5", "llama"):
                failures += check(system, family, draw)
        finally:
            system.stop()
    print("every adapter and base loads from the hub and says the same" if failures == 0 else f"{failures} differ")
    return 1 if failures else 0


def check(system: System, family: str, draw: random.Random) -> int:
    name = f"little-{family}"
    system.run("base", "add", SHIPPED[family], "--name", name, "--dtype", "f32")
    stored = system.base_folder(name)
    dense = dequantised(stored, system.scratch / f"{name}-dense")
    failures = 0
    for method, settings in METHODS.items():
        adapter = f"{method}-{family}"
        job = system.scratch / f"{adapter}.json"
        job.write_text(json.dumps({"base": name, "dataset": "grammar", "adapter": adapter} | settings))
        system.run("train", "-f", job, "--max-steps", 8, "--batch", 8, "--seed", draw.randrange(2**31),
                   "--max-validation-rows", 2, "--max-new-tokens", 4, "--max-tokens", 256)
        system.run("adapter", "set-alias", adapter, "production", 1)
        row = draw.choice(system.rows)
        texts = (f"Correct the grammar: {row['text']}", row["expected text"])
        # A Python of its own: huggingface_hub reads its settings once.
        env = os.environ | {"HF_ENDPOINT": system.registry, "HF_HUB_CACHE": str(system.scratch / "cache"), "HF_HUB_OFFLINE": "0"}
        for revision in ("production", "1", "main"):
            command = [sys.executable, __file__, "--read", family, str(dense), adapter, revision, *texts]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode != 0:
                print(f"{adapter} at {revision}: {done.stderr[-1500:]}")
                failures += 1
                continue
            said = json.loads(done.stdout.splitlines()[-1])
            listed = lambda ids: ",".join(map(str, ids))
            ours = system.run("score", "--adapter", f"{adapter}@production", "--prompt-ids", listed(said["prompt"]),
                              "--token-ids", listed(said["tokens"]))
            worst = max(differences([token["logprob"] for token in ours["tokens"]], said["scores"]))
            good = worst <= F32_LIMIT and said["base_files"] and said["base"] == name
            failures += not good
            print(f"{adapter} at {revision}: {len(said['tokens'])} tokens, worst difference {worst:.1e}, base "
                  f"{said['base']} with {said['base_files']} files from the hub{'' if good else '  FAILED'}", flush=True)
    return failures


def read(family: str, dense: str, adapter: str, revision: str, prompt: str, answer: str) -> int:
    """What a user's Python does, the registry's address being all that it was told."""
    from huggingface_hub import snapshot_download

    auto = transformers.AutoModelForSeq2SeqLM if family == "t5" else transformers.AutoModelForCausalLM
    config = peft.PeftConfig.from_pretrained(f"adapters/{adapter}", revision=revision)
    # The 4-bit base under the name that the adapter gives: its files are there, and its config is one that transformers knows.
    folder = snapshot_download(config.base_model_name_or_path)
    known = transformers.AutoConfig.from_pretrained(config.base_model_name_or_path)
    assert known.quantization_config["quant_method"] == "bitsandbytes", known
    # On a CPU bitsandbytes computes in another type; the same 4-bit weights dequantised are compared.
    model = auto.from_pretrained(dense, dtype=torch.float32, attn_implementation="eager")
    tuned = peft.PeftModel.from_pretrained(model, f"adapters/{adapter}", revision=revision).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"adapters/{adapter}", revision=revision)
    ids = lambda text, most: tokenizer(text, add_special_tokens=False)["input_ids"][:most]
    prompt_ids, token_ids = ids(prompt, 40), ids(answer, 20)
    with torch.no_grad():
        scores = log_probabilities(tuned, prompt_ids, token_ids)
    print(json.dumps({"prompt": prompt_ids, "tokens": token_ids, "scores": scores, "base": config.base_model_name_or_path,
                      "base_files": len(list(Path(folder).iterdir()))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
