//! What the refusals of the corpus' tricks say: each names the file, field or tensor, the value, and the limit if there is
//! one.

use std::path::PathBuf;

use tailor_hostile::TARGETS;

/// `target/file` of the corpus, and what its refusal must say.
const CASES: [(&str, &[&str]); 103] = [
    ("safetensors/empty", &["model.safetensors", "too small"]),
    ("safetensors/cut-at-20", &["model.safetensors", "header length"]),
    ("safetensors/cut-at-74", &["model.safetensors", "not fully covered"]),
    ("safetensors/longer-than-it-says", &["not fully covered"]),
    ("safetensors/header-claims-largest", &["header too large"]),
    ("safetensors/header-claims-100-mb", &["header length"]),
    ("safetensors/offsets-overlap", &["`b`", "offset"]),
    ("safetensors/offsets-with-a-gap", &["`a`", "offset"]),
    ("safetensors/offsets-out-of-range", &["not fully covered"]),
    ("safetensors/offsets-turned-round", &["`a`", "offset"]),
    ("safetensors/offsets-negative", &["-8"]),
    ("safetensors/offsets-largest", &["`a`", "offset"]),
    ("safetensors/names-twice", &["`a`", "offset"]),
    ("safetensors/shape-overflows", &["overflow", "shape"]),
    ("safetensors/shape-overflows-in-bytes", &["overflow", "shape"]),
    ("safetensors/shape-overflows-to-8-bytes", &["overflow", "shape"]),
    ("safetensors/four-bits-shape-too-large", &["w.weight", "9223372036854775808"]),
    ("safetensors/four-bits-shape-zero", &["w.weight", "[0, 16]"]),
    ("safetensors/four-bits-shape-other", &["w.weight", "64 entries", "needs 68"]),
    ("safetensors/scales-not-a-number", &["w.weight", "absmax contains NaN"]),
    ("safetensors/scales-beyond-f32", &["w.weight", "inf", "3.4028235e38"]),
    ("index/shard-parent", &["index.json", "\"../a.safetensors\""]),
    ("index/shard-absolute", &["\"/etc/a.safetensors\""]),
    ("index/shard-folder", &["\"b/a.safetensors\""]),
    ("index/shard-backslash", &["a.safetensors", "no plain file name"]),
    ("index/shard-hidden", &["\".a.safetensors\""]),
    ("index/shard-zero", &["\\0"]),
    ("index/shard-long", &["index.json", "shard \"aaaa"]),
    ("index/shard-pickle", &["\"a.bin\""]),
    ("index/tensor-not-there", &["\"b\"", "a.safetensors"]),
    ("index/1100-shards", &["1100", "1024"]),
    ("quant_state/block-largest", &["blocksize 9223372036854775808", "4096"]),
    ("quant_state/shape-overflows", &["shape [4294967296, 4294967296]"]),
    ("quant_state/shape-of-1000-sides", &["1000 sides", "5"]),
    ("quant_state/too-long", &["5000 bytes", "4096"]),
    ("quant_state/nested-offset-huge", &["nested_offset"]),
    ("adapter_config/rank-huge", &["field r", "1000000000000000000", "1024"]),
    ("adapter_config/rank-negative", &["field r", "-1"]),
    ("adapter_config/rank-float", &["field r", "2.5"]),
    ("adapter_config/alpha-huge", &["lora_alpha", "1e+300"]),
    ("adapter_config/layers-many", &["layers_to_transform", "5000", "4096"]),
    ("adapter_config/targets-5000", &["target_modules", "5000", "4096"]),
    ("adapter_config/targets-regex-repeats", &["target_modules", "a{9999}{9999}", "size limit"]),
    ("adapter_config/targets-regex-nested", &["target_modules", "maximum number of nested"]),
    ("adapter_config/targets-regex-unbalanced", &["target_modules", ")|("]),
    ("adapter_config/rank-pattern-repeats", &["rank_pattern", "size limit"]),
    ("adapter_config/layers-pattern-repeats", &["layers_pattern", "size limit"]),
    ("adapter_config/saved-repeats", &["modules_to_save", "size limit"]),
    ("adapter_config/nested-1000-deep", &["recursion limit"]),
    ("adapter_config/weights-not-a-number", &["lora_A.weight", "value 0"]),
    ("adapter_config/weights-infinite", &["lora_B.weight", "value 0"]),
    ("adapter_config/weights-a-pickle", &["adapter_model.safetensors", "pickle"]),
    ("tokenizer_config/bomb-normalizer", &["normalizer", "18446744073709551615 times", "1024"]),
    ("tokenizer_config/bomb-decoder", &["decoder", "times", "1024"]),
    ("tokenizer_config/bomb-pre-tokenizer", &["times", "1024"]),
    ("tokenizer_config/bomb-template", &["post_processor", "100", "64"]),
    ("tokenizer_config/bomb-template-ids", &["post_processor", "ids", "100", "64"]),
    ("tokenizer_config/bomb-word", &["max_input_chars_per_word", "1000000000000000", "10000"]),
    ("tokenizer_config/bomb-prefix", &["continuing_subword_prefix", "10000", "64"]),
    ("tokenizer_config/charsmap-trie-claims-4-gb", &["precompiled_charsmap", "4294967295"]),
    ("tokenizer_config/charsmap-replaces-by-5000", &["normalizer", "20000 times"]),
    ("tokenizer_config/charsmap-trie-points-outside", &["tokenizer.json", "contradict"]),
    ("tokenizer_config/regex-of-10-kb", &["pre_tokenizer", "10000 bytes", "8192"]),
    ("tokenizer_config/regex-nested", &["parse depth limit"]),
    ("tokenizer_config/fixed-length-zero", &["contradict"]),
    ("tokenizer_config/template-without-token", &["contradict"]),
    ("tokenizer_config/strip-everything", &["cannot decode"]),
    ("tokenizer_config/settings-extra-ids", &["tokenizer_config.json", "extra_ids", "1000"]),
    ("sentencepiece/empty", &["tokenizer.model", "pieces", "has none"]),
    ("sentencepiece/a-pickle", &["tokenizer.model", "breaks off"]),
    ("sentencepiece/length-largest", &["tokenizer.model", "breaks off"]),
    ("sentencepiece/length-of-ten-bytes-more", &["more than 64 bits"]),
    ("sentencepiece/piece-long", &["pieces[0]", "513 bytes", "512"]),
    ("sentencepiece/piece-not-utf-8", &["pieces[0]", "not UTF-8"]),
    ("sentencepiece/pieces-of-two-bytes", &["pieces[1]", "piece 0 already"]),
    ("sentencepiece/merges-of-44-mb", &["pieces", "2097152 merges", "16777216 bytes"]),
    ("sentencepiece/score-infinite", &["pieces[11]", "score is not finite"]),
    ("sentencepiece/unknown-largest", &["unk_id", "18446744073709551615"]),
    ("sentencepiece/algorithm-5", &["model_type 5"]),
    ("sentencepiece/algorithm-3", &["tokenizer.model", "Word"]),
    ("sentencepiece/sentinel-of-its-own", &["extra_ids", "<extra_id_0>"]),
    ("sentencepiece/charsmap-of-3-bytes", &["precompiled_charsmap", "3 bytes"]),
    ("sentencepiece/charsmap-trie-claims-4-gb", &["precompiled_charsmap", "4294967295"]),
    ("sentencepiece/charsmap-trie-points-outside-added", &["tokenizer.model", "contradict"]),
    ("sentencepiece/charsmap-and-long-added", &["added_tokens_decoder", "times as long", "268435456"]),
    ("sentencepiece/settings-class-unknown", &["tokenizer_class", "xxx"]),
    ("sentencepiece/settings-extra-ids", &["extra_ids", "1000"]),
    ("sentencepiece/settings-extra-ids-10000", &["extra_ids", "from 0 to 1000"]),
    ("sentencepiece/special-map-nested-1000-deep", &["special_tokens_map.json", "recursion limit"]),
    ("sentencepiece/added-ids-no-numbers", &["added_tokens.json", "is no id"]),
    ("chat_template/trick-elifs", &["2000 elif", "500"]),
    ("chat_template/trick-operators", &["operators in one tag", "2000"]),
    ("chat_template/trick-repeat-json", &["a list cannot be repeated"]),
    ("chat_template/trick-repeat-right", &["a list cannot be repeated"]),
    ("chat_template/trick-namespaces", &["1000 namespaces"]),
    ("chat_template/trick-deep-print", &["100 deep"]),
    ("chat_template/trick-deep-key", &["100 deep"]),
    ("chat_template/trick-json-indent", &["indent", "16"]),
    ("chat_template/trick-method-format", &["1000000000", "10000"]),
    ("chat_template/trick-list-doubles", &["500000 steps"]),
    ("chat_template/trick-text-doubles", &["500000 steps"]),
    ("chat_template/trick-pad", &["ljust", "1000000000000", "10000"]),
    ("chat_template/trick-macro", &["recursion limit"]),
];

#[test]
fn the_refusal_of_each_trick_names_what_is_wrong() {
    for (file, wanted) in CASES {
        let (target, _) = file.split_once('/').expect("a target");
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(file);
        let input = std::fs::read(&path).expect(file);
        let target = TARGETS.iter().find(|known| known.name == target).expect("a target");
        let message = (target.run)(&input).expect_err(file);
        for part in wanted {
            assert!(message.contains(part), "{file}: wanted {part:?} in: {message}");
        }
    }
}

#[test]
fn expressions_as_long_as_a_template_may_be_do_not_take_the_stack() {
    let target = TARGETS.iter().find(|known| known.name == "chat_template").expect("the target");
    for (start, piece, end) in [
        ("1", "+1", ""),
        ("1", "~1", ""),
        ("1", "*1", ""),
        ("1", "**1", ""),
        ("1", " and 1", ""),
        ("1", " if 1 else 1", ""),
        ("1", "|e", ""),
        ("x", ".x", ""),
        ("x", "[0]", ""),
        ("x", "()", ""),
        ("1", "==1", ""),
        ("1", " is odd", ""),
        ("", "not ", "1"),
        ("", "-", "1"),
        ("[", "1,", "]"),
        ("{", "1:1,", "}"),
        ("f(", "1,", ")"),
    ] {
        let source = format!("{{{{ {start}{}{end} }}}}", piece.repeat(65_500 / piece.len()));
        // Rendered or refused; what matters is that it comes back.
        let _ = (target.run)(source.as_bytes());
    }
    let statements =
        ["{% set x = [x] %}", "{% if 1 %}x{% endif %}", "{% for i in [] %}{% else %}{% endfor %}", "{{ x }}"];
    for statement in statements {
        let _ = (target.run)(statement.repeat(60_000 / statement.len()).as_bytes());
    }
}
