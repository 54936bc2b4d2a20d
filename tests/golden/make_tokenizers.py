"""Makes tests/golden/text/sentencepiece/*.model and tokenizers.json: small tokenizers of our own, SentencePiece models and
tokenizer.json files, and the ids that transformers' classes give with them.

Run with transformers 5.23 and sentencepiece 0.2:  python tests/golden/make_tokenizers.py
"""

import json
import random
import tempfile
from pathlib import Path

import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from sentencepiece.sentencepiece_model_pb2 import ModelProto

HERE = Path(__file__).parent / "text"
MODELS = HERE / "sentencepiece"

SYLLABLES = "ka lo mi ter an su ri ne zo pla dor ven qui ess ob ß ü é 日 本 語 при вет".split()

# The kinds of rule that NFKC has, in hexadecimal code points: what is written, what it becomes.
RULES = {"\t": " ", "\n": " ", "\u00a0": " ", "\u3000": " ", "\ufb01": "fi", "\u2026": "...", "\u2122": "TM",
         "e\u0301": "é", "u\u0308": "ü", "\u200b": "", "½": "1/2", **{chr(0xFF21 + n): chr(65 + n) for n in range(26)}}

TEXTS = [
    "", " ", "a", "Kalo miter", "kalo  miter   an", "  lead and trail  ", "\n", "line\nbreak\n\nand\ttab", "kalo\u00a0mi\u3000ter",
    "ＡＢＣ ﬁn … ™ ½", "e\u0301su u\u0308ber zo\u200blo", "größe 日本語 привет", "🙂", "👩‍👩‍👧 kalo 🇩🇪!", "12345 3.14", "<s>", "</s>",
    "kalo</s> miter", "kalo </s>miter </s> an", "<s>kalo<s> <s>  miter", "<pad><unk>", "x <extra_id_0> y<extra_id_1>z <extra_id_99>",
    "<extra_id_3>", "<name>kalo <name> miter<name>", "▁kalo ▁▁", "a▁b", "\u0000\u0007", "<0x41>", "\r\nkalo\r\n", " kalo", "kalo ",
    "<start_of_turn>user\nkalo<end_of_turn>\n", "<new>kalo <new> <far>  miter<far>", "[INST] kalo [/INST] miter </s><s>[INST] an [/INST]",
    "kalo" * 30, "zzzz QQQQ", "kalo.miter,an;su:ri!ne?(zo)", "don't can't", "\ufeffkalo", "e\u0301\u0301", "　", "ñandú ŁÓDŹ İi",
]


def corpus():
    draw = random.Random(11)
    words = ["".join(draw.choice(SYLLABLES) for _ in range(draw.randint(1, 3))) for _ in range(250)]
    for _ in range(1500):
        line = " ".join(draw.choice(words) for _ in range(draw.randint(3, 12)))
        if draw.random() < 0.3:
            line = line.capitalize() + draw.choice([".", "!", "?", " (so)"])
        if draw.random() < 0.1:
            line += f" {draw.randint(0, 9999)}"
        yield line


def train(name, **options):
    rules = "".join(f"{' '.join(f'{ord(c):x}' for c in source)}\t{' '.join(f'{ord(c):x}' for c in target)}\n"
                    for source, target in RULES.items())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_text("\n".join(corpus()), encoding="utf-8")
        (Path(folder) / "rules").write_text(rules, encoding="utf-8")
        if options.pop("rules", False):
            options["normalization_rule_tsv"] = f"{folder}/rules"
        else:
            options["normalization_rule_name"] = "identity"
        sentencepiece.SentencePieceTrainer.train(input=f"{folder}/text", model_prefix=f"{folder}/m", num_threads=1,
                                                 minloglevel=2, **options)
        model = ModelProto.FromString((Path(folder) / "m.model").read_bytes())
    # Where it was trained is nobody's business, and would make every run's bytes differ.
    for spec, field in ((model.trainer_spec, "input"), (model.trainer_spec, "model_prefix"),
                        (model.normalizer_spec, "normalization_rule_tsv")):
        spec.ClearField(field)
    (MODELS / f"{name}.model").write_bytes(model.SerializeToString())


T5 = dict(model_type="unigram", vocab_size=220, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
BPE = dict(model_type="bpe", byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
           remove_extra_whitespaces=False, vocab_size=480)


def train_all():
    MODELS.mkdir(parents=True, exist_ok=True)
    train("t5", rules=True, **T5)
    train("t5_symbols", user_defined_symbols=["<name>", "▁▁"], **T5)
    train("llama", **BPE)
    train("llama_bare", add_dummy_prefix=False, user_defined_symbols=["<name>", "[INST]"], **BPE)
    train("llama_no_bytes", **{**BPE, "byte_fallback": False, "vocab_size": 220})
    train("gemma", pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
          add_dummy_prefix=False, user_defined_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "▁▁"], **BPE)
    train("word", model_type="word", vocab_size=100)
    train("char", model_type="char", vocab_size=50)


def token(content, **flags):
    return dict(content=content, lstrip=False, rstrip=False, single_word=False, normalized=False, special=True) | flags


EXTRA = [f"<extra_id_{n}>" for n in range(100)]
LLAMA = dict(tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
FAR = token("<far>", special=False, normalized=True, lstrip=True)

# name: model, file, class of transformers, settings, other files
CASES = {
    "t5": ("t5", "spiece.model", "T5Tokenizer", dict(tokenizer_class="T5Tokenizer", extra_ids=100, eos_token="</s>",
           pad_token="<pad>", unk_token="<unk>", additional_special_tokens=EXTRA), {}),
    "t5 without settings": ("t5", "spiece.model", "T5Tokenizer", None, {}),
    "t5 of the fast class": ("t5", "spiece.model", "T5Tokenizer", dict(tokenizer_class="T5TokenizerFast"), {}),
    "mt5": ("t5_symbols", "spiece.model", "T5Tokenizer", dict(tokenizer_class="T5Tokenizer", extra_ids=0,
            additional_special_tokens=None), {}),
    "mt5 of its own class": ("t5_symbols", "spiece.model", "T5Tokenizer", dict(tokenizer_class="MT5Tokenizer", extra_ids=0), {}),
    "t5 with symbols": ("t5_symbols", "spiece.model", "T5Tokenizer", dict(tokenizer_class="T5Tokenizer", extra_ids=4), {}),
    "t5 with new tokens": ("t5", "spiece.model", "T5Tokenizer", dict(tokenizer_class="T5Tokenizer", extra_ids=10,
                           additional_special_tokens=["<new>", "<name>"]), {}),
    "t5 with added tokens": ("t5", "spiece.model", "T5Tokenizer", dict(tokenizer_class="T5Tokenizer", extra_ids=3,
                             added_tokens_decoder={"0": token("<pad>"), "1": token("</s>"), "2": token("<unk>"),
                                                   "400": FAR, "350": token("<new>", rstrip=True)}), {}),
    "t5 in tokenizer.model": ("t5", "tokenizer.model", "T5Tokenizer", dict(tokenizer_class="T5Tokenizer"), {}),
    "llama": ("llama", "tokenizer.model", "LlamaTokenizer", dict(LLAMA, legacy=False, add_bos_token=True, add_eos_token=False,
              bos_token=dict(token("<s>"), __type="AddedToken"), eos_token=dict(token("</s>"), __type="AddedToken")), {}),
    "llama legacy": ("llama", "tokenizer.model", "LlamaTokenizer", dict(LLAMA, legacy=True, add_bos_token=True,
                     add_eos_token=True), {}),
    "llama without settings": ("llama", "tokenizer.model", "LlamaTokenizer", None, {}),
    "llama without a prefix": ("llama", "tokenizer.model", "LlamaTokenizer", dict(LLAMA, add_prefix_space=False,
                               add_bos_token=True), {}),
    "llama legacy without a prefix": ("llama", "tokenizer.model", "LlamaTokenizer", dict(LLAMA, legacy=True,
                                      add_prefix_space=False), {}),
    "llama whose model has no dummy prefix": ("llama_bare", "tokenizer.model", "LlamaTokenizer", dict(LLAMA), {}),
    "llama with a pad token": ("llama", "tokenizer.model", "LlamaTokenizer", dict(LLAMA, legacy=False, pad_token="<pad>",
                               extra_special_tokens=["<new>", "[INST]"], sound_token="<far>"), {}),
    "llama with added tokens": ("llama", "tokenizer.model", "LlamaTokenizer", dict(LLAMA, legacy=False, added_tokens_decoder={
        "0": token("<unk>"), "1": token("<s>", lstrip=True), "2": token("</s>", rstrip=True), "480": token("<new>"), "481": FAR}), {}),
    "llama with the older files": ("llama", "tokenizer.model", "LlamaTokenizer", dict(tokenizer_class="LlamaTokenizer"), {
        "special_tokens_map.json": dict(bos_token=dict(content="<s>", lstrip=False, rstrip=False, normalized=True,
                                                       single_word=False), eos_token="</s>", pad_token="<new>",
                                        additional_special_tokens=["<name>"]),
        "added_tokens.json": {"<far>": 481, "<new>": 480}}),
    "llama without bytes": ("llama_no_bytes", "tokenizer.model", "LlamaTokenizer", dict(LLAMA, legacy=False), {}),
    "gemma": ("gemma", "tokenizer.model", "GemmaTokenizer", dict(tokenizer_class="GemmaTokenizer", add_bos_token=True), {}),
}

REFUSED = {
    "word": ("word", "tokenizer.model", dict(LLAMA), ["tokenizer.model", "model_type", "Word", "tokenizer.json"]),
    "char": ("char", "spiece.model", None, ["spiece.model", "model_type", "Char", "tokenizer.json"]),
    "unigram as llama": ("t5", "tokenizer.model", dict(LLAMA), ["tokenizer.model", "Unigram", "Llama", "tokenizer.json"]),
    "pairs as t5": ("llama", "spiece.model", dict(tokenizer_class="T5Tokenizer"), ["spiece.model", "Bpe", "T5"]),
    "another class": ("t5", "spiece.model", dict(tokenizer_class="XLNetTokenizer"),
                      ["tokenizer_config.json", "tokenizer_class", "XLNetTokenizer", "tokenizer.json"]),
    "another unknown piece": ("word", "tokenizer.model", dict(tokenizer_class="T5Tokenizer"), ["tokenizer.model", "Word"]),
}


def sentencepiece_case(name, model, file, class_name, settings, others):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / file).write_bytes((MODELS / f"{model}.model").read_bytes())
        for other, value in (others | ({"tokenizer_config.json": settings} if settings is not None else {})).items():
            (folder / other).write_text(json.dumps(value))
        return dict(name=name, model=model, file=file, settings=settings, others=others,
                    **expected(getattr(transformers, class_name).from_pretrained(folder)))


def expected(tokenizer):
    """What it gives for every text; the ids alone are those without the `around` ones before and after."""
    bare = tokenizer("kalo", add_special_tokens=False).input_ids
    whole = tokenizer("kalo").input_ids
    start = next(n for n in range(len(whole)) if whole[n:n + len(bare)] == bare)
    before, after = whole[:start], whole[start + len(bare):]
    rows = []
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids == before + tokenizer(text, add_special_tokens=False).input_ids + after
        decoded, spoken = (tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for skip in (False, True))
        rows.append([ids, decoded] + [spoken] * (spoken != decoded))
    special = {f"{name}_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    return dict(size=len(tokenizer), **special, before=before, after=after, rows=rows)


def byte_level():
    """Llama 3's and Qwen's kind: bytes and some merges, a begin token in front."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("k", "a"), ("l", "o"), ("ka", "lo"), ("m", "i"), ("e", "r"), ("t", "er"), ("mi", "ter"), ("Ġ", "miter")]
    vocabulary = {piece: n for n, piece in enumerate(letters + ["".join(pair) for pair in merges])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True),
                                  AddedToken("<left>", special=True, lstrip=True), AddedToken("<right>", special=True, rstrip=True),
                                  AddedToken("<both>", special=True, lstrip=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken("<name>", normalized=True), AddedToken("word", single_word=True), AddedToken("[INST]")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B",
                                                             special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def lowercasing():
    """A normalizer that the added tokens go through, or not."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("Big", normalized=True), AddedToken("LOUD", normalized=False)])
    return tokenizer


def bert(lowercase):
    """BERT's kind: words in pieces, uncased or cased."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-éü日本"]
    pieces += ["##" + c for c in "abcdefghijklmnopqrstuvwxyzé0123456789"] + ["hello", "##llo", "world", "kalo", "##lo", "miter", "grosse", "größe"]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in pieces[:5]])
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[
        ("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


FAST = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>")
BERT = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
            sep_token="[SEP]", mask_token=dict(token("[MASK]", lstrip=True), __type="AddedToken"))

# name: tokenizer.json, settings
JSON_CASES = {
    "flags": (byte_level, FAST),
    "settings that repeat the tokens": (byte_level, dict(FAST, added_tokens_decoder={
        "264": token("<s>"), "265": token("</s>"), "266": token("<left>", lstrip=True)})),
    "settings that add tokens": (byte_level, dict(FAST, added_tokens_decoder={
        "900": token("<new>"), "300": FAR, "299": token("<extra_id_0>", rstrip=True), "1": token("kalo", special=False)})),
    "settings that change a token": (byte_level, dict(FAST, added_tokens_decoder={
        "266": token("<left>", lstrip=False, rstrip=True), "269": token("<name>", special=True)})),
    "extra tokens": (byte_level, dict(FAST, additional_special_tokens=["<new>", "<name>"], pad_token="<pad>", sound_token="<far>")),
    "extra tokens by name": (byte_level, dict(FAST, extra_special_tokens=dict(image_token="<new>", far_token="<far>"))),
    "extra tokens as objects": (byte_level, dict(FAST, extra_special_tokens=[dict(FAR, __type="AddedToken"), "<new>"])),
    "begin token by settings": (byte_level, dict(FAST, add_bos_token=False, add_eos_token=True)),
    "a normalizer": (lowercasing, FAST),
    "a normalizer and more tokens": (lowercasing, dict(FAST, added_tokens_decoder={"500": token("<NEW>", normalized=True, special=False)})),
    "bert uncased": (lambda: bert(True), BERT),
    "bert cased": (lambda: bert(False), BERT),
}

TEXTS += [
    "Hello", "HELLO", "hello", "hElLo WORLD", "héllo HÉLLO", "größe GRÖSSE Größe", "kalo <left> miter <right> an <both> b",
    "<left>  <right>  x  <both>  y", "word words sword word.", "word", "<name><name> <NAME>", "[INST]x[INST] y", "BIG big Big", "LOUD loud Loud",
    "[MASK] x  [MASK]", "[CLS] [SEP]", "日本語 x", "<new>  <NEW> <far>x", "kalokalo kalo", "a\u0301 n\u0303o",
]


def json_case(name, make, settings):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        made = json.loads(make().to_str())
        (folder / "tokenizer.json").write_text(json.dumps(made))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return dict(name=name, tokenizer=made, settings=settings,
                    **expected(transformers.PreTrainedTokenizerFast.from_pretrained(folder)))


def main():
    train_all()
    cases = [sentencepiece_case(name, *case) for name, case in CASES.items()]
    refused = [dict(name=name, model=model, file=file, settings=settings, says=says)
               for name, (model, file, settings, says) in REFUSED.items()]
    made = [json_case(name, *case) for name, case in JSON_CASES.items()]
    with open(HERE / "tokenizers.json", "w") as file:
        json.dump(dict(texts=TEXTS, sentencepiece=cases, json=made, refused=refused), file, indent=None, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
