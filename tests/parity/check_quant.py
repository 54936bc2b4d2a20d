"""4-bit codes against bitsandbytes, byte for byte, and folders both ways; writes docs/parity-quant.md.

    python tests/parity/check_quant.py [SEED]        (`cargo xtask parity quant` brings the Python and the programs)

Tensors of every type, code, nesting and block size are drawn with odd and even shapes and awkward values; bitsandbytes
quantises them on the CPU and so do we. Compared byte for byte: packed numbers, scales, the scales' scales, code books,
quant_state with the offset; then what both dequantise. After that tiny models: saved by transformers and bitsandbytes and
loaded by us, quantised by us and loaded by them, logits against logits.
"""

import json
import os
import random
import secrets
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# Without it bitsandbytes compiles its own fallback anew for every shape; the values are the same.
os.environ["TORCH_COMPILE_DISABLE"] = "1"
# The number of threads is part of what is compared.
os.environ.pop("OMP_NUM_THREADS", None)

import bitsandbytes
import torch
import transformers
from bitsandbytes import functional
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(os.environ.get("TAILOR_BIN_DIR", ROOT / "target" / "debug")) / "examples"
REPORT = ROOT / "docs" / "parity-quant.md"
TYPES = dict(f32=torch.float32, bf16=torch.bfloat16, f16=torch.float16)
BLOCK_SIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096]
# From so many scales on torch gives each thread a share of the mean, whose last bits then hang on their number.
SHARED_SCALES = 32_768
SHARED_OFFSET_ULPS = 4
# Largest difference over the largest value.
# Of logits in f32 from the same logits in f64; or four times what bitsandbytes itself is away, where that is more: which digits are
# lost depends on the processor's kernels, a random T5, whose scores are not scaled, loses some, and the largest of so many
# roundings differs by a factor from one way of rounding to another.
LOGITS_LIMIT = 1e-5


# --- values -----------------------------------------------------------------------------------------------------------


def normal(count, dtype, size):
    return torch.randn(count) * 0.02


def heavy_tailed(count, dtype, size):
    return torch.randn(count) / torch.rand(count).clamp(min=1e-4) * 0.02


def constant(count, dtype, size):
    return torch.full((count,), random.uniform(-2, 2))


def empty_blocks(count, dtype, size):
    values = torch.randn(count)
    for start in range(0, count, 2 * size):
        values[start : start + size] = 0.0
    return values


def nothing(count, dtype, size):
    return torch.zeros(count)


def tiny(count, dtype, size):
    """Around the smallest scale that is inverted, and below the smallest normal number."""
    least = 2e-7 if dtype == torch.float16 else random.choice([1e-38, 3e-38, 1e-40, 1e-44])
    return torch.randn(count) * least


def large(count, dtype, size):
    return (torch.randn(count) * 0.2).clamp(-1, 1) * (65_000.0 if dtype == torch.float16 else 1e31)


def huge(count, dtype, size):
    """So large that the inverse of the scale is no normal number. Not for nested scales, whose mean is infinite then."""
    return (torch.randn(count) * 0.2).clamp(-1, 1) * (65_000.0 if dtype == torch.float16 else 3e38)


def ties(count, dtype, size):
    """The code books' values and thresholds, and their neighbours, times a power of two that is the block's scale."""
    points = []
    for code in ("nf4", "fp4"):
        book = functional.get_4bit_type(code, device="cpu").sort().values
        points.append(torch.cat([book, (book[1:] + book[:-1]) / 2]))
    points = torch.cat(points)
    points = torch.cat([points, torch.nextafter(points, torch.tensor(2.0)), torch.nextafter(points, torch.tensor(-2.0))])
    values = points[torch.randint(len(points), (count,))].clamp(-1, 1)
    values[::size] = 1.0
    scales = 2.0 ** torch.randint(-8, 8, (-(-count // size),)).float()
    return values * scales.repeat_interleave(size)[:count]


def negative_zeros(count, dtype, size):
    values = torch.randn(count)
    values[torch.rand(count) < 0.5] = -0.0
    return values


def few_values(count, dtype, size):
    """Scales that repeat, on which the 8-bit numbers tie."""
    return torch.randint(-3, 4, (count,)) * 0.125


KINDS = [normal, heavy_tailed, constant, empty_blocks, nothing, tiny, large, huge, ties, negative_zeros, few_values]


def shape_of(draw: random.Random, size: int) -> tuple[int, ...]:
    """Odd and even, multiples of the block and not, one value, two and three dimensions."""
    rows, columns = draw.randrange(1, 40), draw.randrange(1, 200)
    return draw.choice([
        (rows, columns), (rows, 2 * columns), (draw.randrange(1, 9), size), (draw.randrange(1, 5), 2 * size),
        (columns,), (3, rows, 10), (1, 1), (1, size + 1), (300, 16),
    ])


# --- tensors ----------------------------------------------------------------------------------------------------------


class Case:
    def __init__(self, name, kind, dtype, code, nested, size, shape, threads=1) -> None:
        self.name, self.kind, self.code, self.nested, self.size, self.threads = name, kind, code, nested, size, threads
        self.dtype = dtype
        count = int(torch.tensor(shape).prod())
        values = kind(count, TYPES[dtype], size)
        self.input = values.to(TYPES[dtype]).reshape(shape)
        assert self.input.isfinite().all(), f"{self}: drawn values must be finite"
        torch.set_num_threads(threads)
        self.packed, self.state = functional.quantize_4bit(
            self.input, blocksize=size, compress_statistics=nested, quant_type=code
        )
        torch.set_num_threads(1)

    def __str__(self):
        scales = "nested" if self.nested else "single"
        return f"{self.kind.__name__} {self.dtype} {self.code} {scales} blocks of {self.size} {tuple(self.input.shape)}"

    def parts(self):
        return {"": self.packed} | {f".{key}": value for key, value in self.state.as_dict(packed=True).items()}

    def tensors(self):
        parts = {f"{self.name}.weight{key}": value for key, value in self.parts().items()}
        return {f"{self.name}.input": self.input} | parts

    def dequantized(self):
        """By bitsandbytes' default back end."""
        absmax = self.state.absmax
        if self.nested:
            absmax = functional.dequantize_blockwise(absmax, self.state.state2) + self.state.offset
        return _dequantize_4bit_compute(
            self.packed.view(-1), absmax, self.state.code, self.size, self.state.shape, self.state.dtype
        )

    def kernel_is_sound(self):
        """bitsandbytes' own CPU kernel (0.50.2) takes wrong scales where a row ends inside a block."""
        return self.input.shape[-1] % self.size == 0


def bytes_of(tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def ulps(a: float, b: float) -> int:
    whole = lambda x: struct.unpack("<i", struct.pack("<f", x))[0]
    return abs(whole(a) - whole(b))


def offset_of(state_bytes: bytes) -> float:
    return json.loads(state_bytes)["nested_offset"]


def same_values(ours, theirs) -> bool:
    """Bit for bit, but for the sign of a zero."""
    return bytes_of(ours + 0.0) == bytes_of(theirs + 0.0)


def flushed(values):
    """The kernel takes products below bf16's least normal number for zero before it rounds, also those that round to it."""
    if values.dtype != torch.bfloat16:
        return values
    return torch.where(values.abs() <= torch.finfo(torch.bfloat16).tiny, 0.0, values)


class Tally:
    """How many of how many, and what broke."""

    def __init__(self) -> None:
        self.same, self.seen = defaultdict(int), defaultdict(int)
        self.broken = []

    def add(self, column: str, equal: bool, what) -> None:
        self.same[column] += equal
        self.seen[column] += 1
        if not equal:
            self.broken.append(f"{column}: {what}")

    def cell(self, column: str) -> str:
        return f"{self.same[column]} of {self.seen[column]}" if self.seen[column] else "–"


COLUMNS = ["numbers", "scales", "scales' scales", "code books", "state, offset", "dequantised", "by its kernel"]


def column_of(key: str, nested: bool) -> str:
    if key == "":
        return "numbers"
    if key == ".absmax":
        return "scales"
    if key == ".nested_absmax":
        return "scales' scales"
    return "state, offset" if "quant_state" in key else "code books"


def draw_cases(draw: random.Random) -> list[Case]:
    cases = []
    for code in ("nf4", "fp4"):
        for nested in (True, False):
            for size in BLOCK_SIZES:
                for kind in KINDS:
                    if kind is huge and nested:
                        continue
                    for dtype in TYPES:
                        name = f"case{len(cases):05}"
                        cases.append(Case(name, kind, dtype, code, nested, size, shape_of(draw, size)))
            # Enough blocks for several tasks of ours, and for a mean over thousands.
            for size, shape in ((64, (512, 640)), (64, (1001, 333)), (32, (900, 1111))):
                dtype = draw.choice(list(TYPES))
                cases.append(Case(f"case{len(cases):05}", heavy_tailed, dtype, code, nested, size, shape))
    return cases


def shared_cases() -> list[Case]:
    """So many scales that torch's own mean hangs on its threads: one thread, and two."""
    shape = (1050, 32 * 32)  # 33,600 blocks of 32
    return [
        Case(f"shared{threads}{kind.__name__}{number}", kind, "f32", "nf4", True, 32, shape, threads)
        for threads, draws in ((1, 1), (2, 4))
        for kind in (normal, heavy_tailed)
        for number in range(draws)
    ]


def run(*arguments) -> None:
    done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{arguments[0].name} {' '.join(map(str, arguments[1:]))}: {done.stderr}")


def compare_tensors(cases: list[Case], scratch: Path) -> tuple[dict, list[int]]:
    """A tally for each code and nesting, and by how much the offsets of two threads differ."""
    source, target = scratch / "tensors", scratch / "ours.safetensors"
    source.mkdir()
    save_file({name: tensor.contiguous() for case in cases for name, tensor in case.tensors().items()},
              source / "model.safetensors")
    run(PROGRAMS / "codes", "tensors", source, target)
    ours = load_file(target)
    tallies, apart = defaultdict(Tally), []
    for case in cases:
        tally = tallies[case.code, case.nested]
        for key, theirs in case.parts().items():
            column = column_of(key, case.nested)
            mine, around = ours[f"{case.name}.weight{key}"], ours.get(f"{case.name}.around{key}")
            if around is not None:
                tally.add(column, bytes_of(around) == bytes_of(theirs), f"{case}, around their offset")
            if case.threads == 1:
                tally.add(column, bytes_of(mine) == bytes_of(theirs), case)
            elif column == "state, offset":
                apart.append(ulps(offset_of(bytes_of(mine)), offset_of(bytes_of(theirs))))
                tally.add(column, apart[-1] <= SHARED_OFFSET_ULPS, f"{case}: {apart[-1]} units")
        values = ours[f"{case.name}.dequantized"].reshape(case.input.shape)
        tally.add("dequantised", same_values(values, case.dequantized()), case)
        narrow = ours[f"{case.name}.bf16"].reshape(case.input.shape)
        tally.add("dequantised", same_values(narrow, case.dequantized().to(torch.bfloat16)), f"{case} in bf16")
        if case.kernel_is_sound():
            theirs = functional.dequantize_4bit(case.packed, case.state)
            tally.add("by its kernel", same_values(flushed(values), flushed(theirs)), case)
    return tallies, apart


# --- folders ----------------------------------------------------------------------------------------------------------


def llama(draw: random.Random):
    heads = draw.choice([2, 4])
    return transformers.LlamaConfig(
        vocab_size=draw.randrange(70, 200), hidden_size=128, intermediate_size=draw.choice([128, 256, 384]),
        num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=256,
        tie_word_embeddings=draw.random() < 0.5, head_dim=128 // heads * draw.choice([1, 2]),
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )


def t5(draw: random.Random):
    return transformers.T5Config(
        vocab_size=draw.randrange(70, 200), d_model=128, d_kv=64, d_ff=draw.choice([128, 256]), num_layers=2,
        num_decoder_layers=2, num_heads=draw.choice([2, 4]), dropout_rate=0.0, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )


class Model:
    """A tiny random model in a folder, its inputs, and what each side makes of it."""

    def __init__(self, config, draw: random.Random, scratch: Path, name: str) -> None:
        self.config, self.scratch, self.name = config, scratch, name
        self.seq2seq = config.model_type == "t5"
        self.auto = transformers.AutoModelForSeq2SeqLM if self.seq2seq else transformers.AutoModelForCausalLM
        self.dense = scratch / name
        torch.manual_seed(draw.randrange(2**31))
        model = self.auto.from_config(config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(1 + 0.1 * noise if "norm" in key else noise * parameter.shape[-1] ** -0.5)
            if self.seq2seq:
                # transformers 5 ties T5's head unless the checkpoint has one of its own.
                head = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
                model.lm_head.weight = torch.nn.Parameter(head)
        model.save_pretrained(self.dense)
        ids = torch.randint(3, config.vocab_size, (3, 17))
        mask = torch.ones_like(ids)
        mask[1, 11:], mask[2, 4:] = 0, 0
        self.inputs = dict(ids=ids * mask, mask=mask)
        if self.seq2seq:
            self.inputs["decoder_ids"] = torch.randint(3, config.vocab_size, (3, 9))
            self.inputs["decoder_ids"][:, 0] = 0

    def load(self, folder: Path, **more):
        model = self.auto.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **more).eval()
        layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
        assert layers, f"{folder} has no 4-bit layer"
        return model, layers

    def quantize(self, code: str, nested: bool) -> Path:
        """The folder that transformers saves after quantising this one with bitsandbytes."""
        how = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=code, bnb_4bit_use_double_quant=nested,
            bnb_4bit_compute_dtype=torch.float32,
        )
        target = self.scratch / f"{self.name}-theirs-{code}-{nested}"
        self.load(self.dense, quantization_config=how)[0].save_pretrained(target)
        return target

    def quantize_here(self, code: str, size: int) -> Path:
        target = Path(tempfile.mkdtemp(prefix=f"{self.name}-{code}-{size}-", dir=self.scratch))
        run(PROGRAMS / "codes", "folder", self.dense, target, code, size, "f32")
        return target

    def logits(self, folder: Path, in_f32=True):
        model, layers = self.load(folder)
        for layer in layers:
            # Its inference kernel for AVX512-BF16 computes in bf16 whatever the compute type is.
            layer.support_avx512bf16_for_cpu = layer.support_avx512bf16_for_cpu and not in_f32
        extra = dict(decoder_input_ids=self.inputs["decoder_ids"]) if self.seq2seq else {}
        with torch.no_grad():
            logits = model(input_ids=self.inputs["ids"], attention_mask=self.inputs["mask"], use_cache=False, **extra)
        return logits.logits

    def exact(self, folder: Path):
        """The same in f64 throughout, from the same 4 bits."""
        model, _ = self.load(folder)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                dense.weight = torch.nn.Parameter(weight.double())
                assert layer.bias is None, f"{name} has a bias"
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, dense)
        extra = dict(decoder_input_ids=self.inputs["decoder_ids"]) if self.seq2seq else {}
        with torch.no_grad():
            logits = model.double()(input_ids=self.inputs["ids"], attention_mask=self.inputs["mask"], use_cache=False, **extra)
        return logits.logits

    def judge(self, folder: Path) -> tuple[str, bool]:
        """How far we and bitsandbytes are from f64 on a folder, and whether that is near enough."""
        exact = self.exact(folder)
        worst, theirs = (self.difference(logits.double(), exact) for logits in (self.probe(folder), self.logits(folder)))
        return f"{worst:.1e} | {theirs:.1e}", worst <= max(LOGITS_LIMIT, 4 * theirs)

    def probe(self, folder: Path):
        source, target = self.scratch / "inputs.safetensors", self.scratch / "logits.safetensors"
        save_file(self.inputs, source)
        run(PROGRAMS / "probe", folder, source, target, "f32", "0")
        return load_file(target)["logits"]

    def difference(self, ours, theirs) -> float:
        real = torch.ones_like(self.inputs["decoder_ids"]).bool() if self.seq2seq else self.inputs["mask"].bool()
        return ((ours - theirs)[real].abs().max() / theirs[real].abs().max()).item()


def same_tensors(ours: Path, theirs: Path) -> tuple[int, list[str]]:
    """How many tensors two folders have alike, and the names of the others."""
    a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    differ = [name for name in a.keys() | b.keys()
              if name not in a or name not in b or a[name].shape != b[name].shape or bytes_of(a[name]) != bytes_of(b[name])]
    return len(a) - len(differ), sorted(differ)


def compare_folders(draw: random.Random, scratch: Path) -> tuple[list[str], list[str], float]:
    """A row for each folder, what broke, and how far bitsandbytes' own bf16 kernel is from its f32."""
    rows, broken, shortcut = [], [], 0.0
    for make in (llama, t5):
        model = Model(make(draw), draw, scratch, make.__name__)
        for code, nested, name in (("nf4", True, "nf4"), ("nf4", False, "nf4-single"), ("fp4", True, None),
                                   ("fp4", False, "fp4")):
            theirs = model.quantize(code, nested)
            truth = model.logits(theirs)
            shortcut = max(shortcut, model.difference(model.logits(theirs, in_f32=False), truth))
            apart, is_near = model.judge(theirs)
            alike = "–"
            if name is not None:
                same, differ = same_tensors(model.quantize_here(name, 64), theirs)
                alike = f"{same} of {same + len(differ)}"
                broken += [f"{make.__name__} {name}: tensor {tensor} differs" for tensor in differ]
            scales = "nested" if nested else "single"
            rows.append(f"| {make.__name__} | transformers + bitsandbytes | {code}, {scales}, 64 | {apart} | {alike} |")
            broken += [f"{rows[-1]}: logits"] if not is_near else []
            print(rows[-1], flush=True)
        for name in ("nf4", "nf4-single", "fp4"):
            size = draw.choice([32, 64, 128])
            ours = model.quantize_here(name, size)
            apart, is_near = model.judge(ours)
            rows.append(f"| {make.__name__} | Tailor | {name}, {size} | {apart} | – |")
            broken += [f"{rows[-1]}: logits"] if not is_near else []
            print(rows[-1], flush=True)
    return rows, broken, shortcut


# --- report -----------------------------------------------------------------------------------------------------------


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(2**31)
    print(f"seed {seed}", flush=True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random.seed(seed)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tailor-quant-") as scratch:
        cases = draw_cases(draw) + shared_cases()
        tallies, apart = compare_tensors(cases, Path(scratch))
        table, broken = [], []
        for (code, nested), tally in tallies.items():
            own = [case for case in cases if (case.code, case.nested) == (code, nested)]
            values = sum(case.input.numel() for case in own)
            scales = "nested" if nested else "single"
            cells = " | ".join(tally.cell(column) for column in COLUMNS)
            table.append(f"| {code}, {scales} | {len(own)} | {values / 1e6:.1f} M | {cells} |")
            print(table[-1], flush=True)
            broken += tally.broken
        print(f"offsets with two threads are {apart} units in the last place from ours", flush=True)
        rows, broken_folders, shortcut = compare_folders(draw, Path(scratch))
        broken += broken_folders
    write_report(seed, table, apart, rows, shortcut)
    for line in broken[:40]:
        print(f"FAILED {line}")
    print(f"{len(cases)} tensors and {len(rows)} folders compared, {len(broken)} breaks; "
          f"{REPORT.relative_to(ROOT)} written")
    return 1 if broken else 0


def write_report(seed: int, table: list[str], apart: list[int], rows: list[str], shortcut: float) -> None:
    heads = " | ".join(COLUMNS)
    lines = [
        "# Parity with bitsandbytes",
        "",
        f"Written by `cargo xtask parity quant`, seed {seed}, with torch {torch.__version__.split('+')[0]}, bitsandbytes "
        f"{bitsandbytes.__version__}, transformers {transformers.__version__}, all on the CPU.",
        "",
        "## Tensors, byte for byte",
        "",
        f"Drawn: f32, bf16 and f16; blocks of {', '.join(map(str, BLOCK_SIZES))}; shapes odd and even, of one to three",
        "dimensions, multiples of the block and not; values that are " + ", ".join(
            kind.__name__.replace("_", " ") for kind in KINDS) + ".",
        "",
        f"| code, scales | tensors | values | {heads} |",
        "|" + " --- |" * (len(COLUMNS) + 3),
        *table,
        "",
        "A cell counts comparisons that were equal in every byte. Nested weights are compared twice: as they come, and",
        "around bitsandbytes' offset. *Dequantised* is against bitsandbytes' default back end, in the weight's own type and",
        "in bf16, bit for bit but for the sign of a zero; *by its kernel* is against its CPU kernel too, where rows are",
        "whole blocks (elsewhere that kernel, in 0.50.2, takes the scale of another block) and but for bf16 numbers not above the",
        "least normal one, which it takes for zero.",
        "",
        f"The offset is the mean of the scales. Up to {SHARED_SCALES - 1:,} scales torch adds them in one order, which is ours:",
        "the same bytes. From there on (2 M values in blocks of 64) torch shares the sum among its threads, so that its own",
        f"result hangs on their number. With one thread the bytes are ours; with two {sum(map(bool, apart))} of "
        f"{len(apart)} offsets",
        f"differed, the worst by {max(apart)} units in the last place (limit {SHARED_OFFSET_ULPS}), and everything else is "
        "equal around",
        "the same offset.",
        "",
        "## Folders",
        "",
        "Tiny random models. Logits in f32 against the same in f64, largest difference over the largest value, over real tokens, of",
        "Tailor and of transformers + bitsandbytes on the same folder; the limit for ours is",
        f"{LOGITS_LIMIT:.0e}, or four times theirs where that is more. *Tensors alike*: how many tensors of the folder that Tailor makes of",
        "the same model have the same bytes.",
        "",
        "| model | quantised and saved by | code, scales, block | ours | theirs | tensors alike |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "bitsandbytes' inference kernel for AVX512-BF16 is switched off for these figures: it computes in bf16 whatever the",
        f"compute type is, which alone moves its logits by {shortcut:.1e}." if shortcut > 0 else
        "compute type is; this processor has none.",
        "",
    ]
    REPORT.write_text("\n".join(lines))


sys.exit(main())
