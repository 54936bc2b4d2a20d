"""Makes tests/golden/preference: DPO's loss and every gradient of a few pairs, as `trl` computes them.

Run with trl 1.16 and what tests/parity/requirements.txt names beside it:  python tests/golden/make_preference.py

Each folder holds peft's adapter for one of tests/golden/models, `pairs.json` (settings, ids, loss) and `gradient.safetensors`.
TRL has no DPO for encoder-decoders. Theirs is the paper's equation 7 (arXiv 2305.18290) in a few lines of torch over
transformers' logits and peft's adapter; the same lines are held to TRL's figures on the decoders first.
"""

import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "parity"))
from check_preference import KINDS, by_trl  # noqa: E402

MODELS = HERE / "models"
OUT = HERE / "preference"
DECODER, ENCODER_DECODER = "llama-gqa", "t5-v11"


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    shutil.rmtree(OUT, ignore_errors=True)
    for name, kind in zip(["plain", "chosen-too", "smoothed"], KINDS):
        with tempfile.TemporaryDirectory() as scratch:
            model = load(DECODER)
            torch.manual_seed(7)
            settings, pairs, loss, gradient = by_trl(model, random.Random(name), kind, Path(scratch))
            adapter = Path(scratch) / "adapter"
            own_loss, own_gradient = by_the_paper(load(DECODER), adapter, settings, pairs)
            assert abs(own_loss - loss) < 1e-5, (name, own_loss, loss)
            for key, value in gradient.items():
                assert (value - own_gradient[key]).abs().max() <= 1e-3 * value.abs().max(), (name, key)
            write(name, DECODER, adapter, settings, pairs, loss, gradient)
    draw = random.Random("t5")
    words = lambda least, most: [draw.randrange(3, 90) for _ in range(draw.randint(least, most))]
    pairs = [{"prompt": words(2, 8), "chosen": words(1, 5) + [1], "rejected": words(1, 5) + [1]} for _ in range(4)]
    settings = dict(beta=0.3, label_smoothing=0.1, sft_weight=0.5)
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(8)
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q", "v", "wo"], task_type="SEQ_2_SEQ_LM",
                                 init_lora_weights=False)
        adapter = Path(scratch) / "adapter"
        peft.get_peft_model(load(ENCODER_DECODER), config).save_pretrained(adapter)
        loss, gradient = by_the_paper(load(ENCODER_DECODER), adapter, settings, pairs)
        write("t5", ENCODER_DECODER, adapter, settings, pairs, loss, gradient)


def load(name: str):
    auto = transformers.AutoModelForSeq2SeqLM if name == ENCODER_DECODER else transformers.AutoModelForCausalLM
    return auto.from_pretrained(MODELS / name, attn_implementation="eager", dtype=torch.float32).eval()


def by_the_paper(model, adapter: Path, settings: dict, pairs: list) -> tuple[float, dict]:
    tuned = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()
    beta, smooth = settings["beta"], settings["label_smoothing"]
    loss, chosen_loss, chosen_labels = 0.0, 0.0, 0
    for pair in pairs:
        policy = [answer(tuned, pair["prompt"], pair[side]) for side in ("chosen", "rejected")]
        with torch.no_grad(), tuned.disable_adapter():
            reference = [answer(tuned, pair["prompt"], pair[side]) for side in ("chosen", "rejected")]
        margin = beta * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
        log_sigmoid = torch.nn.functional.logsigmoid
        loss = loss - (1 - smooth) * log_sigmoid(margin) - smooth * log_sigmoid(-margin)
        chosen_loss, chosen_labels = chosen_loss - policy[0], chosen_labels + len(pair["chosen"])
    loss = loss / len(pairs) + settings["sft_weight"] * chosen_loss / chosen_labels
    loss.backward()
    gradient = {name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
                for name, parameter in tuned.named_parameters() if parameter.grad is not None}
    return loss.item(), gradient


def answer(model, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """ln p(tokens | prompt)"""
    if model.config.is_encoder_decoder:
        shifted = torch.tensor([[model.config.decoder_start_token_id, *tokens[:-1]]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=shifted, use_cache=False).logits[0]
    else:
        logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0, len(prompt) - 1:-1]
    return logits.log_softmax(-1)[range(len(tokens)), tokens].sum()


def write(name: str, base: str, adapter: Path, settings: dict, pairs: list, loss: float, gradient: dict) -> None:
    folder = OUT / name
    folder.mkdir(parents=True)
    shutil.copyfile(adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    document = {"base": base, "preference": settings, "pairs": pairs, "loss": loss}
    (folder / "pairs.json").write_text(json.dumps(document, indent=1) + "\n")
    save_file({key: value.contiguous() for key, value in gradient.items()}, folder / "gradient.safetensors")
    print(f"{name}: {len(pairs)} pairs on {base}, loss {loss:.6f}, {len(gradient)} gradients")


if __name__ == "__main__":
    main()
