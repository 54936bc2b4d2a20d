"""Every model family against transformers and peft, on random models of fresh shapes; writes docs/parity.md.

    python tests/parity/check_models.py [SEED]        (`cargo xtask parity models` brings the Python and the programs)

For each family several models are drawn (heads, groups, head size, windows, biases, ties, rope), saved by transformers and
loaded by both sides. Compared: logits in f32 and bf16 with padding left, right and none, and of the texts packed into one
sequence; greedy answers of 64 tokens, ours
in one batch with a KV cache and theirs one at a time; the loss with a random adapter on every linear layer, and the gradient
of each of its matrices against peft's.
"""

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
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(os.environ.get("TAILOR_BIN_DIR", ROOT / "target" / "debug")) / "examples" / "probe"
REPORT = ROOT / "docs" / "parity.md"
SHAPES = 4
NEW_TOKENS = 64
# Largest difference over the largest value.
F32_LIMIT = 1e-4
LOSS_LIMIT = 1e-5
# Where the reference's two best logits are so near, relative to the largest, either token is greedy.
TIE = 1e-5
GRADIENT_LIMIT = 1e-3
# Our mean error in bf16, against f32, over the larger of transformers' own two (eager and SDPA), on the same tokens.
BF16_LIMIT = 2.0


def decoder(draw: random.Random) -> dict:
    kv, groups = draw.choice([1, 2, 3]), draw.choice([1, 2, 4])
    heads = kv * groups
    head_dim = draw.choice([8, 16, 20])
    hidden = heads * draw.choice([8, 16])
    return dict(
        vocab_size=draw.randrange(70, 200), hidden_size=hidden, intermediate_size=draw.choice([40, 72, 96]),
        num_hidden_layers=draw.choice([2, 3]), num_attention_heads=heads, num_key_value_heads=kv, head_dim=head_dim,
        max_position_embeddings=256, rms_norm_eps=draw.choice([1e-5, 1e-6]), tie_word_embeddings=draw.random() < 0.5,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )


def rope(draw: random.Random, kinds=("default", "linear", "llama3")) -> dict:
    kind = draw.choice(kinds)
    parameters = dict(rope_type=kind, rope_theta=draw.choice([100.0, 10_000.0, 500_000.0]))
    if kind == "linear":
        parameters |= dict(factor=draw.choice([2.0, 8.0]))
    if kind == "llama3":
        parameters |= dict(factor=draw.choice([4.0, 8.0]), low_freq_factor=1.0, high_freq_factor=4.0,
                           original_max_position_embeddings=draw.choice([16, 32]))
    return parameters


def window(draw: random.Random) -> int:
    return draw.choice([2, 5, 9])  # all shorter than the texts


def llama(draw):
    return transformers.LlamaConfig(**decoder(draw), rope_parameters=rope(draw), attention_bias=draw.random() < 0.5,
                                    mlp_bias=draw.random() < 0.5)


def mistral(draw):
    sliding = draw.choice([None, window(draw), window(draw)])
    return transformers.MistralConfig(**decoder(draw), rope_parameters=rope(draw, ["default"]), sliding_window=sliding)


def qwen2(draw):
    shape = decoder(draw)
    shape.pop("head_dim")  # the reference derives it
    return transformers.Qwen2Config(**shape, rope_parameters=rope(draw, ["default", "linear"]), **qwen_window(draw))


def qwen3(draw):
    bias = draw.random() < 0.5
    return transformers.Qwen3Config(**decoder(draw), rope_parameters=rope(draw, ["default", "linear"]),
                                    attention_bias=bias, **qwen_window(draw))


def qwen_window(draw):
    return dict(use_sliding_window=draw.random() < 0.7, sliding_window=window(draw), max_window_layers=draw.choice([0, 1]))


def gemma(draw):
    return transformers.GemmaConfig(**decoder(draw), hidden_act=draw.choice(["gelu", "gelu_pytorch_tanh"]))


def gemma2(draw):
    return transformers.Gemma2Config(
        **decoder(draw), sliding_window=window(draw), query_pre_attn_scalar=draw.choice([8, 24, 256]),
        attn_logit_softcapping=draw.choice([1.0, 50.0]), final_logit_softcapping=draw.choice([2.0, 30.0, None]),
    )


def gemma3(draw):
    ropes = dict(full_attention=rope(draw, ["default", "linear"]), sliding_attention=rope(draw, ["default"]))
    return transformers.Gemma3TextConfig(
        **decoder(draw), sliding_window=window(draw), query_pre_attn_scalar=draw.choice([8, 24, 256]),
        sliding_window_pattern=draw.choice([2, 3]), rope_parameters=ropes,
    )


def encoder_decoder(draw) -> dict:
    buckets = draw.choice([8, 16, 32])
    return dict(
        vocab_size=draw.randrange(70, 200), d_model=draw.choice([24, 32, 48]), d_kv=draw.choice([8, 12]),
        d_ff=draw.choice([40, 64]), num_layers=draw.choice([1, 2]), num_decoder_layers=draw.choice([2, 3]),
        num_heads=draw.choice([2, 3, 5]), relative_attention_num_buckets=buckets,
        relative_attention_max_distance=buckets * draw.choice([1, 2, 4]), dropout_rate=0.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )


def t5(draw):
    gated = draw.random() < 0.7
    return transformers.T5Config(**encoder_decoder(draw), feed_forward_proj="gated-gelu" if gated else "relu",
                                 tie_word_embeddings=not gated)


def mt5(draw):
    return transformers.MT5Config(**encoder_decoder(draw), feed_forward_proj="gated-gelu")


FAMILIES = dict(llama=llama, mistral=mistral, qwen2=qwen2, qwen3=qwen3, gemma=gemma, gemma2=gemma2, gemma3=gemma3,
                t5=t5, mt5=mt5)


class Case:
    """One drawn model and its inputs."""

    def __init__(self, config, draw: random.Random, folder: Path) -> None:
        self.config, self.folder, self.seed = config, folder, draw.randrange(2**31)
        self.seq2seq = config.model_type in ("t5", "mt5")
        self.new_model().save_pretrained(folder)
        self.inputs = self.draw_inputs(draw)

    def new_model(self):
        torch.manual_seed(self.seed)
        auto = transformers.AutoModelForSeq2SeqLM if self.seq2seq else transformers.AutoModelForCausalLM
        model = auto.from_config(self.config).eval()
        middle = 0 if self.config.model_type.startswith("gemma") else 1  # Gemma multiplies by 1 + w
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.copy_(middle + 0.1 * torch.randn_like(parameter))
                elif name.endswith("bias") or "relative_attention_bias" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
                else:
                    parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        if self.config.model_type == "t5" and not self.config.scale_decoder_outputs:
            # transformers 5 ties T5's head unless the checkpoint has one of its own.
            shape = (self.config.vocab_size, self.config.d_model)
            model.lm_head.weight = torch.nn.Parameter(torch.randn(*shape) * self.config.d_model**-0.5)
        return model

    def load(self, dtype, attention: str):
        auto = transformers.AutoModelForSeq2SeqLM if self.seq2seq else transformers.AutoModelForCausalLM
        return auto.from_pretrained(self.folder, dtype=dtype, attn_implementation=attention).eval()

    def draw_inputs(self, draw: random.Random) -> dict:
        """Three texts of different lengths: padded on the right, on the left (decoders), or not at all."""
        torch.manual_seed(self.seed + 1)
        length = draw.randrange(14, 30)
        ids = torch.randint(3, self.config.vocab_size, (3, length))
        mask = torch.ones_like(ids)
        self.padding = draw.choice(["right", "none"] if self.seq2seq else ["left", "right", "none"])
        for row, share in ((1, 0.7), (2, 0.3)):
            real = max(2, int(length * share))
            if self.padding == "right":
                mask[row, real:] = 0
            elif self.padding == "left":
                mask[row, : length - real] = 0
        inputs = dict(ids=ids * mask, mask=mask)
        if self.seq2seq:
            inputs["decoder_ids"] = torch.randint(3, self.config.vocab_size, (3, draw.randrange(5, 14)))
            inputs["decoder_ids"][:, 0] = 0
        else:
            real = mask.bool()
            numbers = torch.arange(1, 4)[:, None].expand_as(ids)
            # The texts one after another, each token with its text's number, and some padding.
            inputs["packed.ids"], inputs["packed.mask"] = (
                torch.nn.functional.pad(x[real], (0, 3))[None].clone() for x in (ids, numbers)
            )
        return inputs

    def logits(self, model):
        ids, mask = self.inputs["ids"], self.inputs["mask"]
        if self.seq2seq:
            decoder_ids = self.inputs["decoder_ids"]
            return model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False).logits
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits

    def real(self):
        return torch.ones_like(self.inputs["decoder_ids"]).bool() if self.seq2seq else self.inputs["mask"].bool()

    def loss(self, logits):
        targets = self.inputs["decoder_ids"] if self.seq2seq else self.inputs["ids"]
        real = self.real()
        counted = real[:, 1:] & real[:, :-1]
        return torch.nn.functional.cross_entropy(logits[:, :-1][counted], targets[:, 1:][counted])

    def greedy(self, model):
        rows = []
        for ids, mask in zip(self.inputs["ids"], self.inputs["mask"]):
            prompt = ids[mask.bool()].unsqueeze(0)
            answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                                    max_new_tokens=NEW_TOKENS, pad_token_id=0,
                                    use_cache=not self.seq2seq)  # transformers fails where the stacks' depths differ
            answer = answer[0, 1:] if self.seq2seq else answer[0, prompt.shape[1]:]
            answer = [token for token in answer.tolist() if token != self.config.eos_token_id]
            rows.append(answer + [-1] * (NEW_TOKENS - len(answer)))
        return torch.tensor(rows)

    def agrees(self, model, row: int, ours: list[int], theirs: list[int]) -> bool:
        """Whether the answers are the same, or part where the reference itself has a tie to within rounding."""
        if ours == theirs:
            return True
        at = next(place for place, (a, b) in enumerate(zip(ours, theirs)) if a != b)
        prompt = self.inputs["ids"][row][self.inputs["mask"][row].bool()].unsqueeze(0)
        shared = torch.tensor([theirs[:at]], dtype=torch.long)
        with torch.no_grad():
            if self.seq2seq:
                start = torch.zeros((1, 1), dtype=torch.long)
                decoder_ids = torch.cat([start, shared], 1)
                logits = model(input_ids=prompt, decoder_input_ids=decoder_ids, use_cache=False).logits[0, -1]
            else:
                logits = model(input_ids=torch.cat([prompt, shared], 1), use_cache=False).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        print(f"  greedy answers part at token {at}: the two best logits are {best:.7f} and {second:.7f}", flush=True)
        return best - second <= TIE * logits.abs().max().item()

    def adapter(self, model):
        """A random adapter on every linear layer, its values put among the inputs."""
        kind = "SEQ_2_SEQ_LM" if self.seq2seq else "CAUSAL_LM"
        tuned = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type=kind))
        torch.manual_seed(self.seed + 2)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.2
                self.inputs[f"lora.value.{key_of(name)}"] = parameter.detach().clone()
        self.inputs["lora.scale"] = torch.tensor([2.0])
        return tuned

    def probe(self, dtype: str, new_tokens: int) -> dict:
        # Beside the folder, where nobody takes them for weights.
        source, target = (self.folder.with_name(f"{self.folder.name}-{what}.safetensors") for what in ("inputs", dtype))
        save_file({name: tensor.contiguous() for name, tensor in self.inputs.items()}, source)
        command = [PROBE, self.folder, source, target, dtype, str(new_tokens)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"probe {self.folder.name}: {done.stderr}\n{(self.folder / 'config.json').read_text()}")
        return load_file(target)


def key_of(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".default", "")


def relative(ours, theirs) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).item()


def compare(case: Case) -> dict:
    exact = case.load(torch.float32, "eager")
    real = case.real()
    with torch.no_grad():
        truth = case.logits(exact)
        answers = case.greedy(exact)
    ours = case.probe("f32", NEW_TOKENS)
    pairs = zip(ours["greedy"].tolist(), answers.tolist())
    greedy = sum(case.agrees(exact, row, mine, theirs) for row, (mine, theirs) in enumerate(pairs))
    tuned = case.adapter(exact)
    tuned_logits = case.logits(tuned)
    loss = case.loss(tuned_logits)
    loss.backward()
    gradients = {key_of(name): p.grad for name, p in tuned.named_parameters() if "lora_" in name}

    ours = case.probe("f32", 0)
    got = dict(
        logits=relative(ours["logits"][real], truth[real]),
        tuned=relative(ours["lora.logits"][real], tuned_logits[real].detach()),
        loss=abs(ours["lora.loss"].item() - loss.item()) / abs(loss.item()),
        gradient=max(relative(ours[f"lora.gradient.{key}"], value) for key, value in gradients.items()),
        matrices=len(gradients),
        greedy=greedy,
        rows=len(answers),
        packed=None,
    )
    if not case.seq2seq:
        # Each text of the packed sequence against the same text in a batch of the reference's.
        got["packed"] = max(
            relative(ours["packed.logits"][0, :-3], truth[real]),
            relative(ours["packed.lora.logits"][0, :-3], tuned_logits[real].detach()),
            abs(ours["packed.lora.loss"].item() - loss.item()) / abs(loss.item()),
        )
        packed = (relative(ours[f"packed.lora.gradient.{key}"], value) for key, value in gradients.items())
        got["gradient"] = max(got["gradient"], *packed)
    assert len(gradients) == sum(name.startswith("lora.gradient.") for name in ours), "the same layers take LoRA"
    half = case.probe("bf16", 0)["logits"]
    error = lambda logits: (logits.float()[real] - truth[real]).abs().mean().item()
    own = []
    for attention in ("eager", "sdpa"):
        try:
            with torch.no_grad():
                own.append(error(case.logits(case.load(torch.bfloat16, attention))))
        except ValueError:
            pass  # transformers has no SDPA for soft caps
    got["bf16"] = error(half) / max(own)
    return got


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(2**31)
    print(f"seed {seed}", flush=True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    table, failed = [], []
    with tempfile.TemporaryDirectory(prefix="tailor-models-") as scratch:
        for family, config in FAMILIES.items():
            draw = random.Random(f"{seed} {family}")
            results = []
            for number in range(SHAPES):
                case = Case(config(draw), draw, Path(scratch) / f"{family}-{number}")
                results.append(compare(case))
            seq2seq = results[0]["packed"] is None
            worst = {name: max(result[name] or 0.0 for result in results) for name in results[0]}
            same, rows = (sum(result[name] for result in results) for name in ("greedy", "rows"))
            matrices = sum(result["matrices"] for result in results)
            limits = dict(logits=F32_LIMIT, tuned=F32_LIMIT, packed=F32_LIMIT, loss=LOSS_LIMIT, gradient=GRADIENT_LIMIT, bf16=BF16_LIMIT)
            broken = [name for name, limit in limits.items() if not worst[name] <= limit]
            broken += ["greedy"] if same != rows else []
            failed += [f"{family}: {', '.join(broken)}"] if broken else []
            table.append(
                f"| {family} | {worst['logits']:.1e} | {worst['tuned']:.1e} "
                f"| {'–' if seq2seq else format(worst['packed'], '.1e')} | {same} of {rows} | {worst['loss']:.1e} "
                f"| {worst['gradient']:.1e} ({matrices}) | {worst['bf16']:.2f} |"
            )
            print(table[-1], flush=True)
    write_report(seed, table)
    for line in failed:
        print(f"FAILED {line}")
    print(f"{len(FAMILIES) - len(failed)} of {len(FAMILIES)} families agree; {REPORT.relative_to(ROOT)} written")
    return 1 if failed else 0


def write_report(seed: int, table: list[str]) -> None:
    lines = [
        "# Parity with transformers and peft",
        "",
        f"Written by `cargo xtask parity models`, seed {seed}: {SHAPES} random models a family, of fresh shapes, with torch "
        f"{torch.__version__.split('+')[0]}, transformers {transformers.__version__}, peft {peft.__version__}, all on the CPU.",
        "Each cell is the worst of its models.",
        "",
        f"| family | f32 logits (≤ {F32_LIMIT:.0e}) | with a random adapter (≤ {F32_LIMIT:.0e}) "
        f"| packed, both (≤ {F32_LIMIT:.0e}) | greedy, {NEW_TOKENS} tokens | loss (≤ {LOSS_LIMIT:.0e}) | LoRA gradients (≤ {GRADIENT_LIMIT:.0e}) "
        f"| bf16 error (≤ {BF16_LIMIT}) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *table,
        "",
        "Logits and gradients: largest difference over the largest value, over real tokens; padding is left, right or none.",
        "Greedy: rows equal to the last token (or to where the reference has a tie to within 1e-5), ours in one batch with a KV",
        "cache, theirs one by one. Gradients: the worst",
        "matrix, padded or packed, and in brackets how many were compared. Packed: the three texts in one sequence, against the",
        "same texts in the reference's batch (decoders; encoder-decoders are not packed). bf16: our mean error against f32 over the larger of transformers'",
        "own errors in bf16 (eager and SDPA), on the same tokens.",
        "",
    ]
    REPORT.write_text("\n".join(lines))


sys.exit(main())
