"""The inputs that the fuzz targets start from: small sound files, and a file for each trick that a parser must see through.

Writes fuzz/corpus/TARGET/NAME with Python's standard library alone. Parts of an input are joined by the byte 0xFF
(crates/hostile). Files that a fuzzer found are kept beside these under the names that cargo-fuzz gives them.
"""

import base64
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "tests/golden"
SEPARATOR = b"\xff"


def seed(target, name, *parts):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    encoded = [part if isinstance(part, bytes) else as_text(part).encode() for part in parts]
    (folder / name).write_bytes(SEPARATOR.join(encoded))


def as_text(part):
    return part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)


def container(tensors, header=None, length=None):
    """Safetensors of (name, dtype, shape, bytes), or with a header of its own."""
    described, data = {}, b""
    for name, dtype, shape, values in tensors:
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = header if header is not None else json.dumps(described).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def state(**changes):
    fields = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [8, 16]}
    return {name: value for name, value in (fields | changes).items() if value is not None}


NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
CODE = floats(*[i / 15 for i in range(16)])


def four_bit(changes=None, **parts):
    """The tensors of one weight of 8 x 16 in 4 bits."""
    text = json.dumps(state(**(changes or {}))).encode()
    tensors = {
        "w.weight": ("U8", [64, 1], bytes(range(64))),
        "w.weight.absmax": ("F32", [2], floats(1.0, 2.0)),
        "w.weight.quant_map": ("F32", [16], CODE),
        "w.weight.quant_state.bitsandbytes__nf4": ("U8", [len(text)], text),
    } | parts
    return [(name, *tensor) for name, tensor in tensors.items()]


def safetensors():
    one = ("a", "F32", [2], floats(1, 2))
    sound = container([one])
    seed("safetensors", "sound", sound)
    seed("safetensors", "four-bits", container(four_bit()))
    nested = {
        "w.weight.absmax": ("U8", [2], b"\x00\xff"),
        "w.weight.nested_absmax": ("F32", [1], floats(1.0)),
        "w.weight.nested_quant_map": ("F32", [256], floats(*[i / 255 for i in range(256)])),
    }
    seed("safetensors", "four-bits-nested", container(four_bit(NESTED, **nested)))
    seed("safetensors", "scales-beyond-f32", container(four_bit(**{
        "w.weight.absmax": ("F32", [2], floats(3e38, 1)),
        "w.weight.quant_map": ("F32", [16], floats(*[3e38] * 16)),
    })))
    seed("safetensors", "scales-not-a-number", container(four_bit(**{
        "w.weight.absmax": ("F32", [2], floats(float("nan"), 1)),
    })))
    for name, shape in [("empty", []), ("too-large", [2**63, 4]), ("zero", [0, 16]), ("other", [8, 17])]:
        seed("safetensors", f"four-bits-shape-{name}", container(four_bit({"shape": shape})))
    seed("safetensors", "empty", b"")
    seed("safetensors", "seven-bytes", sound[:7])
    for cut in (8, 20, len(sound) - 3):
        seed("safetensors", f"cut-at-{cut}", sound[:cut])
    seed("safetensors", "longer-than-it-says", sound + b"xyz")
    for name, length in [("largest", 2**64 - 1), ("sign", 2**63), ("100-mb", 10**8), ("101-mb", 101 * 10**6), ("0", 0)]:
        seed("safetensors", f"header-claims-{name}", container([one], length=length))

    def described(offsets, shape=[2], dtype="F32", more=""):
        return (f'{{"a":{{"dtype":"{dtype}","shape":{json.dumps(shape)},"data_offsets":{json.dumps(offsets)}}}'
                f"{more}}}").encode()

    second = ',"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}'
    for name, header in {
        "offsets-overlap": described([0, 8], more=second),
        "offsets-with-a-gap": described([4, 12]),
        "offsets-out-of-range": described([0, 800], [200]),
        "offsets-turned-round": described([8, 0]),
        "offsets-negative": described([-8, 0]),
        "offsets-largest": described([2**64 - 8, 2**64 - 1]),
        "shape-overflows": described([0, 8], [2**32, 2**32, 2**32]),
        "shape-overflows-in-bytes": described([0, 8], [2**62]),
        "shape-overflows-to-8-bytes": described([0, 8], [2**63 + 1, 2]),
        "shape-is-zero": described([0, 0], [0, 2**63]),
        "shape-negative": described([0, 8], [-2]),
        "shape-of-1000-sides": described([0, 4], [1] * 1000),
        "type-unknown": described([0, 8], dtype="F31"),
        "type-of-4-bits": described([0, 1], dtype="F4"),
        "name-of-10000-letters": described([0, 8]).replace(b'"a"', b'"' + b"a" * 10000 + b'"'),
        "names-twice": described([0, 8], more=second.replace('"b"', '"a"')),
        "not-utf-8": b'{"\xff\xfe":1}',
        "nested-1000-deep": b"[" * 1000,
        "no-object": b"[1,2]",
        "metadata-no-text": b'{"__metadata__":{"a":1}}',
    }.items():
        seed("safetensors", name, container([("x", "U8", [8], bytes(8))], header=header))
    seed("safetensors", "pickle", b"\x80\x02}q\x00.")


def index():
    shard = container([("a", "F32", [2], floats(1, 2))])
    named = {"weight_map": {"a": "a.safetensors"}}
    seed("index", "sound", named, shard)
    for name, value in {
        "parent": "../a.safetensors",
        "absolute": "/etc/a.safetensors",
        "folder": "b/a.safetensors",
        "backslash": "..\\a.safetensors",
        "hidden": ".a.safetensors",
        "zero": "a\0.safetensors",
        "pickle": "a.bin",
        "the-index-itself": "model.safetensors.index.json",
        "not-there": "b.safetensors",
        "empty": "",
        "long": "a" * 5000 + ".safetensors",
        "no-text": 7,
    }.items():
        seed("index", f"shard-{name}", {"weight_map": {"a": value}}, shard)
    seed("index", "tensor-not-there", {"weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}, shard)
    seed("index", "no-tensor", {"weight_map": {}}, shard)
    seed("index", "1100-shards", {"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(1100)}}, shard)
    seed("index", "no-map", [], shard)
    seed("index", "nested-1000-deep", '{"weight_map":' * 1000, shard)


def quant_state():
    packed, scales = bytes(range(64)), floats(1.0, 2.0)
    seed("quant_state", "single", state(), packed, scales)
    seed("quant_state", "nested", state(**NESTED), packed, b"\x00\xfe", floats(1.0))
    seed("quant_state", "bf16-odd", state(dtype="bfloat16", shape=[3, 43], blocksize=32), bytes(65), floats(*[1] * 5))
    seed("quant_state", "uniform", state(quant_type="uniform4"), packed, scales, floats(0, -1))
    for name, changes in {
        "block-zero": {"blocksize": 0}, "block-63": {"blocksize": 63}, "block-largest": {"blocksize": 2**63},
        "block-negative": {"blocksize": -64}, "shape-overflows": {"shape": [2**32, 2**32]},
        "shape-empty": {"shape": []}, "shape-of-1000-sides": {"shape": [1] * 1000}, "shape-no-list": {"shape": 4},
        "type-unknown": {"quant_type": "int" * 1000}, "dtype-unknown": {"dtype": "complex64"},
        "nested-block-zero": NESTED | {"nested_blocksize": 0}, "nested-offset-huge": NESTED | {"nested_offset": 1e300},
        "nested-half": {"nested_offset": 1.0},
    }.items():
        seed("quant_state", name, state(**changes), packed, scales)
    seed("quant_state", "too-long", b" " * 5000)
    seed("quant_state", "nested-1000-deep", b"[" * 1000)


def adapter_config():
    path = "base_model.model.model.layers.0.self_attn.q_proj"

    def weights(rank=2, a=None, b=None, names=("lora_A", "lora_B"), dtype="F32"):
        size = 4 if dtype == "F32" else 2
        one = floats(1) if dtype == "F32" else b"\x80\x3f"
        a = a if a is not None else one * (4 * rank)
        b = b if b is not None else one * (4 * rank)
        return container([(f"{path}.{names[0]}.weight", dtype, [rank, len(a) // rank // size], a),
                          (f"{path}.{names[1]}.weight", dtype, [len(b) // rank // size, rank], b)])

    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
    seed("adapter_config", "sound", plain, weights())
    seed("adapter_config", "sound-bf16", plain, weights(dtype="BF16"))
    for case in ("llama-patterns", "patterns-t5", "dora-llama", "saved-llama", "lora-bias", "t5-regex"):
        seed("adapter_config", f"peft-{case}", (GOLDEN / "peft" / case / "adapter_config.json").read_bytes(), weights())
    not_a_number = floats(float("nan"), *[1.0] * 7)
    seed("adapter_config", "weights-not-a-number", plain, weights(a=not_a_number))
    seed("adapter_config", "weights-infinite", plain, weights(b=floats(float("inf"), *[1.0] * 7)))
    seed("adapter_config", "weights-of-another-rank", plain, weights(rank=1))
    seed("adapter_config", "weights-without-b", plain, weights(names=("lora_A", "lora_C")))
    seed("adapter_config", "weights-a-pickle", plain, b"\x80\x02}q\x00.")
    seed("adapter_config", "weights-a-zip", plain, b"PK\x03\x04" + bytes(60))
    for name, changes in {
        "rank-zero": {"r": 0}, "rank-huge": {"r": 10**18}, "rank-float": {"r": 2.5}, "rank-text": {"r": "8"},
        "rank-negative": {"r": -1}, "alpha-huge": {"lora_alpha": 1e300}, "targets-none": {"target_modules": []},
        "targets-5000": {"target_modules": ["q"] * 5000}, "targets-regex-repeats": {"target_modules": "a{9999}{9999}"},
        "targets-regex-backtracks": {"target_modules": "(.*a){20}(.*a){20}b|(a+)+$"},
        "targets-regex-look-ahead": {"target_modules": ".*(?=q)"},
        "targets-regex-unbalanced": {"target_modules": ")|("},
        "targets-regex-nested": {"target_modules": "(" * 5000 + ")" * 5000},
        "rank-pattern-repeats": {"rank_pattern": {r"\w{50}" + str(i): 1 for i in range(200)}},
        "rank-pattern-long": {"rank_pattern": {"a" * 20000 + "(": 1}},
        "layers-many": {"layers_to_transform": list(range(5000))}, "layers-negative": {"layers_to_transform": [-1]},
        "layers-pattern-repeats": {"layers_pattern": [r"\w{40}"] * 500},
        "saved-repeats": {"modules_to_save": [r"\w{40}"] * 500}, "unknown-long": {"x" * 5000: 1},
        "init-pissa": {"init_lora_weights": "pissa"},
    }.items():
        seed("adapter_config", name, plain | changes, weights())
    seed("adapter_config", "nested-1000-deep", b'{"a":' * 1000)


def tokenizer_config():
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "▁": 6, "▁a": 7, "l": 8, "o": 9, "lo": 10}
    bpe = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": False, "vocab": vocabulary,
           "merges": [["a", "b"], ["▁", "a"], ["l", "o"]]}
    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, text in enumerate(["<unk>", "<s>", "</s>"])]
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}

    def template(single, special=special):
        return {"type": "TemplateProcessing", "single": single, "pair": [sequence], "special_tokens": special}

    def chain(kind, *steps):
        return {"type": "Sequence", kind: list(steps)}

    def replace(pattern, content):
        kind = "Regex" if pattern.startswith("re:") else "String"
        return {"type": "Replace", "pattern": {kind: pattern.removeprefix("re:")}, "content": content}

    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    plain = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
             "normalizer": replace(" ", "▁"), "pre_tokenizer": metaspace, "post_processor": template([begin, sequence]),
             "decoder": chain("decoders", replace("▁", " "), {"type": "Fuse"},
                              {"type": "Strip", "content": " ", "start": 1, "stop": 0}), "model": bpe}
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "tokenizer_class": "LlamaTokenizer"}
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [[text, -float(i)] for text, i in vocabulary.items()]}
    word_piece = {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary}

    def case(name, changes=None, settings=settings, template="", text="ab lo"):
        seed("tokenizer_config", name, plain | (changes or {}), settings, template, text)

    case("sound")
    case("sound-chat", template="{{ bos_token }}{{ messages[0].content }}")
    case("sound-unigram", {"model": unigram})
    case("sound-word-piece", {"model": word_piece, "normalizer": {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    case("sound-byte-level", {"pre_tokenizer": chain("pretokenizers", {
        "type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"}, "behavior": "Isolated",
        "invert": False}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}})
    bomb = [replace("a", "a" * 100)] * 10
    case("bomb-normalizer", {"normalizer": chain("normalizers", *bomb)})
    case("bomb-normalizer-nested", {"normalizer": chain("normalizers", chain("normalizers", *bomb[:5]), *bomb[:5])})
    case("bomb-empty-pattern", {"normalizer": chain("normalizers", *[replace("re:", "aa")] * 20)})
    case("bomb-decoder", {"decoder": chain("decoders", *bomb)})
    case("bomb-pre-tokenizer", {"pre_tokenizer": chain("pretokenizers", *[
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}] * 40)})
    case("bomb-template", {"post_processor": template([sequence] * 100)})
    case("bomb-template-ids", {"post_processor": template(
        [begin] * 60, {"<s>": {"id": "<s>", "ids": [1] * 100, "tokens": ["<s>"] * 100}})})
    case("bomb-padding", {"padding": {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
                                      "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}})
    case("bomb-truncation", {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst",
                                            "stride": 10**18}})
    case("bomb-word", {"model": word_piece | {"max_input_chars_per_word": 10**15}})
    case("bomb-prefix", {"model": word_piece | {"continuing_subword_prefix": "#" * 10000}})
    for name, table in {"trie-claims-4-gb": struct.pack("<I", 2**32 - 1), "of-3-bytes": b"abc", "empty": b"",
                        "trie-points-outside": struct.pack("<II", 4, 2**32 - 1) + b"abc\0",
                        "replaces-by-5000": struct.pack("<II", 4, 0) + b"a" * 5000}.items():
        case(f"charsmap-{name}", {"normalizer": {"type": "Precompiled",
                                                 "precompiled_charsmap": base64.b64encode(table).decode()}})
    case("charsmap-not-base64", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "é"}})
    case("regex-of-10-kb", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a|" * 5000},
                                               "behavior": "Isolated", "invert": False}})
    case("regex-nested", {"normalizer": replace("re:" + "(" * 4000 + ")" * 4000, "")})
    case("regex-repeats", {"normalizer": replace("re:((a{1000}){1000}){1000}", "")})
    case("template-without-token", {"post_processor": template([{"SpecialToken": {"id": "<x>", "type_id": 0}}])})
    case("template-of-b", {"post_processor": template([{"Sequence": {"id": "B", "type_id": 0}}])})
    case("fixed-length-zero", {"pre_tokenizer": {"type": "FixedLength", "length": 0}})
    case("strip-everything", {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 10**18}})
    case("unigram-without-unk", {"model": unigram | {"unk_id": 10**18}})
    case("unigram-empty", {"model": unigram | {"vocab": []}})
    case("ids-with-holes", {"model": bpe | {"vocab": vocabulary | {"z": 2**32 - 1}}})
    case("merge-of-nothing", {"model": bpe | {"merges": [["z", "y"]]}})
    case("model-twice", text="a")
    path = HERE / "corpus/tokenizer_config/model-twice"
    path.write_bytes(path.read_bytes().replace(b'"model": {', b'"normalizer": null, "model": {', 1))
    case("nested-1000-deep", {"normalizer": None})
    path = HERE / "corpus/tokenizer_config/nested-1000-deep"
    path.write_bytes(path.read_bytes().replace(b'"normalizer": null', b'"normalizer": ' + b"[" * 1000 + b"]" * 1000, 1))
    case("nested-100-deep", {"normalizer": None})
    path = HERE / "corpus/tokenizer_config/nested-100-deep"
    deep = b'{"type":"Sequence","normalizers":[' * 60 + b"]}" * 60
    path.write_bytes(path.read_bytes().replace(b'"normalizer": null', b'"normalizer": ' + deep, 1))
    for name, changes in {
        "eos-unknown": {"eos_token": "<" + "x" * 5000}, "eos-number": {"eos_token": 7},
        "extra-ids": {"extra_ids": 10**18}, "added-id": {"added_tokens_decoder": {"-1": {"content": "x"}}},
        "added-empty": {"extra_special_tokens": [""]},
        "chat-template-list": {"chat_template": [{"name": "default", "template": "{{ messages }}"}]},
        "chat-template-broken": {"chat_template": "{% for %}"},
    }.items():
        case(f"settings-{name}", settings=settings | changes)


def varint(number):
    """A number of a protocol buffer; a negative one as C++ writes it."""
    number %= 2**64
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    """A field of a protocol buffer: a number, a float, a text or bytes."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece_model(pieces, algorithm=1, unk_id=2, charsmap=None, trainer=b""):
    """A ModelProto of (text, score, kind); unigram is 1, pairs are 2."""
    body = b"".join(field(1, field(1, text) + field(2, float(score)) + field(3, kind)) for text, score, kind in pieces)
    spec = field(3, algorithm) + field(40, unk_id) + trainer
    return body + field(2, spec) + (field(3, field(2, charsmap)) if charsmap is not None else b"")


def sentencepiece():
    words = ["▁", "a", "b", "l", "o", "ab", "lo", "▁a"]
    pieces = [(text, -float(i), 1) for i, text in enumerate(words)]
    special = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
    starts = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    letters = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    t5, pairs = special + pieces, starts + pieces
    gemma = [("<pad>", 0.0, 3), ("<eos>", 0.0, 3), ("<bos>", 0.0, 3), ("<unk>", 0.0, 2)] + pieces
    table = struct.pack("<II", 4, 0) + b"abc\0"

    def case(name, model, settings="", special="", added="", text="ab lo"):
        seed("sentencepiece", name, settings, special, added, text, model)

    for name in ("t5", "t5_symbols", "llama", "llama_bare", "llama_no_bytes", "gemma", "char", "word"):
        case(f"golden-{name.replace('_', '-')}", (GOLDEN / f"text/sentencepiece/{name}.model").read_bytes())
    case("golden-t5-settings", (GOLDEN / "text/sentencepiece/t5.model").read_bytes(),
         {"tokenizer_class": "T5Tokenizer", "extra_ids": 3, "additional_special_tokens": ["<extra_id_0>"]},
         {"eos_token": "</s>", "pad_token": {"content": "<pad>", "lstrip": True}}, {"<new>": 220})
    case("sound-t5", sentencepiece_model(t5), {"extra_ids": 2})
    case("sound-llama", sentencepiece_model(starts + letters + pieces, 2, 0),
         {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True})
    case("sound-gemma", sentencepiece_model(gemma, 2, 3), {"tokenizer_class": "GemmaTokenizer"})
    case("sound-named-piece", sentencepiece_model(pairs + [("<name>", 0.0, 4)], 2, 0), added={"<far>": 10**6})

    model = sentencepiece_model(t5)
    case("empty", b"")
    case("a-pickle", b"\x80\x02}q\x00.")
    for cut in (1, 5, len(model) - 1):
        case(f"cut-at-{cut}", model[:cut])
    case("length-largest", b"\x0a" + b"\xff" * 9 + b"\x01x")
    case("length-of-ten-bytes-more", b"\x0a" + b"\xff" * 10 + b"\x01x")
    case("groups-nested", b"\x0b" * 1000)
    case("pieces-empty", field(1, b"") * 1000)
    case("pieces-of-two-bytes", field(1, field(1, "a")) * 1000)
    case("piece-not-utf-8", field(1, field(1, b"\xff\xfe")))
    case("piece-long", sentencepiece_model([("a" * 513, 0.0, 1)]))
    case("piece-of-zeros", sentencepiece_model(t5 + [("\0", 0.0, 1)]))
    case("pieces-twice", sentencepiece_model(t5 + [("ab", 0.0, 1)]))
    for name, score in [("not-a-number", float("nan")), ("infinite", float("-inf")), ("largest", 3.4e38), ("lowest", -3.4e38)]:
        case(f"score-{name}", sentencepiece_model(t5 + [("x", score, 1)]))
    for name, unknown in [("negative", -1), ("largest", 2**64 - 1), ("none", 10**6), ("first", 0)]:
        case(f"unknown-{name}", sentencepiece_model(t5, unk_id=unknown))
        case(f"unknown-{name}-pairs", sentencepiece_model(pairs, 2, unknown))
    for algorithm in (0, 2, 3, 4, 5, 2**63):
        case(f"algorithm-{algorithm}", sentencepiece_model(t5, algorithm))
    case("no-control-piece", sentencepiece_model([("a", 0.0, 1), ("b", 0.0, 1), ("c", 0.0, 1)]))
    case("sentinel-of-its-own", sentencepiece_model(t5 + [("<extra_id_0>", 0.0, 4)]))
    case("byte-pieces-wrong", sentencepiece_model(pairs + [("<0xZZ>", 0.0, 6), ("<0x41", 0.0, 6)], 2, 0))
    case("merges-of-one-letter", sentencepiece_model(starts + [("a" * n, -float(n), 1) for n in range(1, 200)], 2, 0))
    case("merges-of-44-mb", sentencepiece_model(starts + [("a" * n, -float(n), 1) for n in range(1, 513)], 2, 0))
    case("merges-of-two-letters", sentencepiece_model(
        starts + [(f"{n:0{size}b}", 0.0, 1) for size in range(1, 9) for n in range(2**size)], 2, 0))
    for name, charsmap in {
        "trie-of-a-zero": table, "empty": b"", "of-3-bytes": b"abc", "trie-claims-4-gb": struct.pack("<I", 2**32 - 1),
        "trie-points-outside": struct.pack("<II", 4, 2**32 - 1) + b"abc\0", "without-end": table[:-1],
        "trie-of-3-bytes": struct.pack("<I", 3) + b"abcdef\0", "not-utf-8": table + b"\xff\xfe\0",
        "replaces-by-5000": struct.pack("<II", 4, 0) + b"a" * 5000 + b"\0",
    }.items():
        case(f"charsmap-{name}", sentencepiece_model(t5, charsmap=charsmap))
        case(f"charsmap-{name}-added", sentencepiece_model(t5, charsmap=charsmap), {
            "added_tokens_decoder": {str(20 + n): {"content": f"ab lo {n}", "normalized": True} for n in range(9)}})
    case("charsmap-and-long-added", sentencepiece_model(t5, charsmap=struct.pack("<II", 4, 0) + b"a" * 5000 + b"\0"), {
        "added_tokens_decoder": {"20": {"content": "b" * 60000, "normalized": True}}})
    for name, settings in {
        "class-unknown": {"tokenizer_class": "x" * 5000}, "class-number": {"tokenizer_class": 7},
        "class-llama": {"tokenizer_class": "LlamaTokenizer"}, "extra-ids": {"extra_ids": 10**18},
        "extra-ids-most": {"extra_ids": 1000}, "extra-ids-10000": {"extra_ids": 10000}, "eos-long": {"eos_token": "<" + "x" * 5000},
        "eos-not-there": {"eos_token": "<none>"}, "eos-empty": {"eos_token": ""}, "eos-a-list": {"eos_token": []},
        "added-id": {"added_tokens_decoder": {"-1": {"content": "x"}}}, "added-empty": {"extra_special_tokens": [""]},
    }.items():
        case(f"settings-{name}", model, settings)
    pair_model = sentencepiece_model(pairs, 2, 0)
    both = {"add_bos_token": True, "add_eos_token": True}
    case("settings-bos-not-there", pair_model, {"bos_token": "<none>"} | both)
    case("settings-bos-is-a-sequence", pair_model, {"bos_token": "A", "eos_token": "$A"} | both)
    case("settings-bos-empty", pair_model, {"bos_token": ""} | both)
    case("settings-unk-not-there", sentencepiece_model(gemma, 2, 3), {"tokenizer_class": "GemmaTokenizer", "unk_token": "<none>"})
    case("settings-not-json", model, "{")
    case("special-map-nested-1000-deep", model, special='{"a":' * 1000)
    case("special-map-a-list", model, special=[1])
    case("special-map-numbers", model, special={"eos_token": 7, "x_token": [1]})
    case("added-ids-no-numbers", model, added={"a": "b"})
    case("added-ids-largest", model, added={"x": 2**64 - 1, "y": 2**64 - 1})
    case("added-empty", model, added={"": 300})


def chat_template():
    golden = json.loads((GOLDEN / "text/chat.json").read_text())
    for name, source in golden["templates"].items():
        seed("chat_template", f"golden-{name}", source)
    messages = [{"role": "user", "content": "a" * 50, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}]
    double = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    doubled = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
    deep = "{% set ns = namespace(x=[]) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}"
    for name, source in {
        "range": "{% for i in range(1000000000) %}x{% endfor %}", "range-list": "{{ range(10**18) | list }}",
        "range-product": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "power": "{{ 10**1000 }}{{ 2**63 * 2 }}{{ -9223372036854775808 // -1 }}{{ 1 % 0 }}",
        "text-times": "{{ 'a' * 10**12 }}", "list-times": "{{ [1] * 10**12 }}", "text-doubles": double + "{{ ns.x }}",
        "list-doubles": doubled + "{{ ns.x | length }}", "list-doubles-list": doubled + "{{ (ns.x | list) | length }}",
        "list-doubles-text": doubled + "{{ ns.x }}", "list-doubles-json": doubled + "{{ ns.x | tojson }}",
        "list-doubles-sort": doubled + "{{ ns.x | sort | first }}", "list-doubles-sum": doubled + "{{ ns.x | sum }}",
        "list-doubles-index": doubled + "{{ ns.x.index(2) }}", "list-doubles-in": doubled + "{{ 2 in ns.x }}",
        "list-doubles-equal": doubled + "{{ ns.x == ns.x }}", "list-doubles-join": doubled + "{{ ''.join(ns.x) }}",
        "list-doubles-count": doubled + "{{ ns.x.count(1) }}", "list-doubles-slice": doubled + "{{ ns.x[::-1] }}",
        "list-doubles-items": doubled + "{{ dict(a=ns.x).items() | list }}",
        "deep-drop": deep, "deep-print": deep + "{{ ns.x }}", "deep-json": deep + "{{ ns.x | tojson }}",
        "deep-equal": deep + "{% set y = ns.x %}{{ [ns.x] == [[y]] }}", "deep-sort": deep + "{{ [ns.x, [ns.x]] | sort }}",
        "deep-key": deep + "{{ {ns.x: 1} }}", "deep-sum": deep + "{{ [ns.x] | sum(start=[]) }}",
        "deep-tests": deep + "{{ ns.x is eq ns.x }}{{ [ns.x] | unique | list }}",
        "wide-json": "{% set x = [messages] * 100 %}{% set y = [x] * 100 %}{% set z = [y] * 1000 %}{{ z | tojson }}",
        "self": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}{{ ns | tojson }}{{ ns == ns }}",
        "macro": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "loop": "{% for x in [1] recursive %}"
        "{{ loop([1]) }}{% endfor %}", "include": "{% include 'chat_template' %}",
        "import": "{% import 'chat_template' as x %}{{ x }}", "extends": "{% extends 'chat_template' %}",
        "file": "{% include '/etc/passwd' %}", "dunder": "{{ ''.__class__.__mro__ }}{{ messages.__init__ }}",
        "pad": "{{ 'a'.ljust(10**12) }}{{ 'a'.center(9999) }}", "indent": "{{ 'a\\nb' | indent(10**12) }}",
        "json-indent": "{{ messages | tojson(indent=10**12) }}", "round": "{{ 1.5 | round(10**9) }}",
        "batch": "{{ [1] | batch(10**12, 'x') | list }}", "slice": "{{ [1] | slice(10**12) | list }}",
        "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}", "method-replace":
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}", "join-long": "{{ range(99999) | join('a' * 100000) }}",
        "method-join": "{{ ('a' * 100000).join(messages[0].content * 1000) }}", "format": "{{ '%1000000000d' | format(1) }}",
        "method-format": "{{ '{:1000000000}'.format(1) }}", "raise": "{{ raise_exception('a' * 1000000) }}",
        "strftime": "{{ strftime_now('%c' * 100000) }}", "split": "{{ ('a ' * 1000000).split() | length }}",
        "map": "{{ range(99999) | map('string') | map('upper') | list }}", "generation": "{% generation %}" * 300,
        "generation-nested": "{% generation %}{% generation %}x{% endgeneration %}y{% endgeneration %}",
        "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "ifs": "{% if 1 %}" * 2000, "nots": "{{ " + "not " * 5000 + "1 }}", "minus": "{{ " + "-" * 5000 + "1 }}",
        "filters": "{{ 1" + "|string" * 5000 + " }}", "dots": "{{ a" + ".a" * 5000 + " }}",
        "sums": "{{ 1" + "+1" * 5000 + " }}", "fold-text": "{{ 'aaaaaaaaaa' * 1000 * 1000 * 1000 }}", "fold-list": "{{ [[1] * 9999] * 9999 | string }}",
        "repeat-json": "{{ ([1] * 100000000) | tojson }}", "repeat-right": "{% set x = [1] %}{{ '' ~ 100000000 * x }}",
        "namespaces": "{% for i in range(2000) %}{% set ns = namespace(a=ns) %}{% endfor %}",
        "operators": "{{ 1" + "~1" * 4000 + " }}", "elifs": "{% if 0 %}" + "{% elif 0 %}" * 2000 + "{% endif %}",
        "name": "{{ " + "a" * 5000 + "() }}", "escape": "{{ '\\U0001F642\\U00110000\\Uxyz' }}",
    }.items():
        seed("chat_template", f"trick-{name}", source, messages)
    seed("chat_template", "messages-noncharacter", "{% generation %}{{ messages }}{% endgeneration %}",
         [{"role": "user", "content": "\ufdd0"}])


if __name__ == "__main__":
    for make in (safetensors, index, quant_state, adapter_config, tokenizer_config, sentencepiece, chat_template):
        make()
