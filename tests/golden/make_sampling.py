"""Writes tests/golden/sampling/sampling.json: fixed logits, settings, and what transformers would draw from.

Run with a Python that has torch 2.11 and transformers 5.23 (`cargo xtask parity` makes one):

    python tests/golden/make_sampling.py

The processors are those that `generate` builds from a generation config, in its own order. Presence and frequency penalty
are not transformers'; they follow OpenAI's formula, after repetition and before temperature:
logit[j] - count[j] * frequency - (count[j] > 0) * presence, counted over the answer.
`crates/engine/src/sampler/tests.rs` compares.
"""

import itertools
import json
import random
from pathlib import Path

import torch
import transformers
from transformers.generation import LogitsProcessor

HERE = Path(__file__).parent / "sampling"
VOCABULARY = 48
ROWS = 6


class Penalties(LogitsProcessor):
    """OpenAI's presence and frequency penalties."""

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self.presence, self.frequency, self.prompt_length = presence, frequency, prompt_length

    def __call__(self, input_ids, scores):
        counts = torch.bincount(input_ids[0, self.prompt_length:], minlength=scores.shape[1]).float()
        return scores - counts * self.frequency - (counts > 0).float() * self.presence


def main() -> None:
    HERE.mkdir(exist_ok=True)
    torch.manual_seed(0)
    logits = torch.randn(ROWS, VOCABULARY) * 3
    logits[1, 10:14] = logits[1].max()  # ties at the top
    logits[2] = logits[2].round()       # and everywhere
    logits[3, 5:30] = -torch.inf        # what a grammar forbids
    model = tiny_model()
    cases = [case(model, logits, *chosen) for chosen in choices()]
    finite = [[max(value, -3.4e38) for value in row] for row in logits.tolist()]
    finite = [[value if value > -3e38 else -1e39 for value in row] for row in finite]
    (HERE / "sampling.json").write_text(json.dumps({"logits": finite, "cases": cases}) + "\n")
    print(f"{len(cases)} cases")


def tiny_model():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def choices():
    draw = random.Random(0)
    options = {
        "temperature": [0.3, 0.7, 1.0, 1.5, 2.0],
        "top_k": [1, 2, 5, 20, 100],
        "top_p": [0.05, 0.5, 0.9, 0.99],
        "min_p": [0.01, 0.1, 0.5],
        "repetition_penalty": [0.7, 1.2, 2.0],
        "presence_penalty": [-1.0, 0.5, 2.0],
        "frequency_penalty": [-0.5, 0.3, 1.5],
        "logit_bias": [{"3": 5.0, "7": -100.0}, {"0": -2.5, "47": 2.5, "20": 1.0}],
    }
    # Each setting alone with each of its values, then many together.
    for name, values in options.items():
        for value, row in itertools.product(values, range(ROWS)):
            yield row, {"temperature": 1.0, name: value}, draw
    for _ in range(150):
        names = [name for name in options if name != "temperature" and draw.random() < 0.5]
        settings = {name: draw.choice(options[name]) for name in names}
        if draw.random() < 0.85:
            settings["temperature"] = draw.choice(options["temperature"])
        yield draw.randrange(ROWS), settings, draw


def case(model, logits, row: int, settings: dict, draw: random.Random) -> dict:
    prompt = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 6))]
    answer = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(0, 6))]
    answer += answer[:2]  # some twice
    ids = torch.tensor([prompt + answer])
    scores = logits[row : row + 1].clone()
    before, after = processors(model, settings, prompt)
    scores = before(ids, scores)
    argmax = int(scores.argmax())
    found = {"logits": row, "settings": settings, "prompt": prompt, "answer": answer, "argmax": argmax}
    if "temperature" in settings:
        probabilities = after(ids, scores).softmax(-1)[0]
        kept = probabilities.nonzero()[:, 0].tolist()
        found |= {"kept": kept, "probabilities": probabilities[kept].tolist()}
    return found


def processors(model, settings: dict, prompt: list[int]):
    """What changes the scores of greedy decoding too, and what only sampling does."""
    sampled = {name: settings[name] for name in ("temperature", "top_k", "top_p", "min_p") if name in settings}
    penalties = {name: settings[name] for name in ("repetition_penalty",) if name in settings}
    if bias := settings.get("logit_bias"):
        penalties["sequence_bias"] = [[[int(token)], value] for token, value in bias.items()]
    # 0 would be transformers' "unset", which means 50.
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": VOCABULARY, **sampled})
    after = model._get_logits_processor(config, device="cpu", input_ids_seq_length=len(prompt))
    config = transformers.GenerationConfig(do_sample=False, **penalties)
    before = model._get_logits_processor(config, device="cpu", input_ids_seq_length=len(prompt))
    before.append(Penalties(settings.get("presence_penalty", 0.0), settings.get("frequency_penalty", 0.0), len(prompt)))
    return before, after


if __name__ == "__main__":
    main()
