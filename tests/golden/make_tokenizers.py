"""Makes tests/golden/text/sentencepiece/*.model and tokenizers.json: small tokenizers of our own, and the ids that
transformers' classes give with them.

Run with transformers 5.23 and sentencepiece 0.2:  python tests/golden/make_tokenizers.py
"""

import json
import random
import tempfile
from pathlib import Path

import sentencepiece
import transformers
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


def models():
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
    rows = []
    for text in TEXTS:
        ids, bare = tokenizer(text).input_ids, tokenizer(text, add_special_tokens=False).input_ids
        decode = lambda skip: tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        rows.append(dict(text=text, ids=ids, bare=bare, decoded=decode(False), spoken=decode(True)))
    special = {f"{name}_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    return dict(size=len(tokenizer), **special, rows=rows)


def main():
    models()
    cases = [sentencepiece_case(name, *case) for name, case in CASES.items()]
    refused = [dict(name=name, model=model, file=file, settings=settings, says=says)
               for name, (model, file, settings, says) in REFUSED.items()]
    with open(HERE / "tokenizers.json", "w") as file:
        json.dump(dict(sentencepiece=cases, refused=refused), file, indent=None, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
