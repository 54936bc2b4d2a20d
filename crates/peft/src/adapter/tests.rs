use super::*;

pub(crate) const PATH: &str = "model.layers.0.self_attn.q_proj";

pub(crate) fn config(rank: u32) -> AdapterConfig {
    AdapterConfig::new("CAUSAL_LM", rank, 8.0, 0.0, &["q_proj".to_owned()]).expect("valid")
}

fn config_with(extra: &str) -> AdapterConfig {
    let json = format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":8,"target_modules":["q_proj"],{extra}}}"#);
    AdapterConfig::parse(json.as_bytes()).expect("valid")
}

pub(crate) fn pair(rank: usize, in_features: usize, out_features: usize) -> LoraPair {
    let a = (0..rank * in_features).map(|i| i as f32 * 0.25 - 1.0).collect();
    let b = (0..rank * out_features).map(|i| 0.5 - i as f32 * 0.125).collect();
    LoraPair { a, b, rank, in_features, out_features }
}

pub(crate) fn one<T>(path: &str, value: T) -> BTreeMap<String, T> {
    BTreeMap::from([(path.to_owned(), value)])
}

pub(crate) fn whole(shape: &[usize], value: f32) -> WholeTensor {
    let bytes = value.to_le_bytes().repeat(shape.iter().product());
    WholeTensor { dtype: safetensors::Dtype::F32, shape: shape.to_vec(), bytes }
}

/// A sound pair and what is given besides.
fn with(extra: &str, change: impl FnOnce(&mut Tensors)) -> Result<Adapter> {
    let mut tensors = Tensors { pairs: one(PATH, pair(2, 6, 4)), ..Tensors::default() };
    change(&mut tensors);
    Adapter::with_tensors(config_with(extra), tensors)
}

#[test]
fn a_sound_adapter_says_its_rank_scale_and_size() {
    let adapter = Adapter::new(config(2), one(PATH, pair(2, 6, 4))).expect("sound");
    assert_eq!(adapter.scale_for(PATH), 4.0);
    assert_eq!(adapter.max_rank(), 2);
    assert_eq!(adapter.size_bytes(), 4 * (12 + 8));
}

#[test]
fn a_pair_with_wrong_rank_size_or_value_is_refused_by_name() {
    let rank = Adapter::new(config(3), one(PATH, pair(2, 6, 4))).expect_err("rank");
    assert!(rank.to_string().contains("rank 2 where the config says 3"), "{rank}");
    let mut short = pair(2, 6, 4);
    short.a.pop();
    assert!(Adapter::new(config(2), one(PATH, short)).is_err(), "A lacks a value");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut poisoned = pair(2, 6, 4);
        poisoned.b[3] = bad;
        let error = Adapter::new(config(2), one(PATH, poisoned)).expect_err("not finite");
        assert!(error.to_string().contains("lora_B: value 3"), "{error}");
    }
}

#[test]
fn a_module_that_the_config_does_not_name_is_refused() {
    let error = Adapter::new(config(2), one("model.layers.0.mlp.up_proj", pair(2, 6, 4))).expect_err("untargeted");
    assert!(error.to_string().contains("target_modules"), "{error}");
}

#[test]
fn what_the_config_asks_for_is_accepted_and_counted() {
    let plain = with(r#""bias":"none""#, |_| {}).expect("plain").size_bytes();
    let dora = with(r#""use_dora":true"#, |t| t.magnitudes = one(PATH, vec![1.0; 4])).expect("DoRA");
    assert_eq!(dora.size_bytes(), plain + 16);
    let bias = with(r#""lora_bias":true"#, |t| t.lora_biases = one(PATH, vec![1.0; 4])).expect("bias of B");
    assert_eq!(bias.size_bytes(), plain + 16);
    let head = with(r#""modules_to_save":["lm_head"]"#, |t| t.whole = one("lm_head.weight", whole(&[3, 6], 0.5)));
    assert_eq!(head.expect("head").size_bytes(), plain + 72);
    with(r#""bias":"lora_only""#, |t| t.whole = one(&format!("{PATH}.bias"), whole(&[4], 0.5))).expect("its bias");
    with(r#""bias":"all""#, |t| t.whole = one("model.layers.0.mlp.up_proj.bias", whole(&[4], 0.5))).expect("any bias");
}

#[test]
fn tensors_and_settings_that_do_not_belong_together_are_refused_by_name() {
    type Change = fn(&mut Tensors);
    let cases: [(&str, Change, &str); 12] = [
        (r#""use_dora":true"#, |_| {}, "has no lora_magnitude_vector"),
        (r#""use_dora":false"#, |t| t.magnitudes = one(PATH, vec![1.0; 4]), "use_dora off"),
        (r#""use_dora":true"#, |t| t.magnitudes = one(PATH, vec![1.0; 5]), "5 values for a module that has 4 outputs"),
        (r#""use_dora":true"#, |t| t.magnitudes = one(PATH, vec![f32::NAN; 4]), "lora_magnitude_vector: value 0"),
        (r#""lora_bias":true"#, |_| {}, "has no lora_B.bias"),
        (r#""lora_bias":null"#, |t| t.lora_biases = one(PATH, vec![1.0; 4]), "lora_bias off"),
        (r#""bias":"none""#, |t| t.whole = one("lm_head.weight", whole(&[3, 6], 0.5)), "modules_to_save"),
        (r#""bias":"lora_only""#, |t| t.whole = one("k_proj.bias", whole(&[4], 0.5)), "asks for this tensor"),
        (r#""modules_to_save":["shared"]"#, |t| t.whole = one("shared.weight", whole(&[3, 6], 0.5)), "embed_tokens"),
        (r#""modules_to_save":["head"]"#, |t| t.whole = one("lm_head.weight", whole(&[3, 6], f32::NAN)), "value 0"),
        (
            r#""modules_to_save":["relative_attention_bias"]"#,
            |t| t.whole = one("encoder.block.0.relative_attention_bias.weight", whole(&[8, 4], 0.5)),
            "position biases",
        ),
        (
            r#""modules_to_save":["j_proj","elf_attn.q_proj"]"#,
            |t| t.whole = one(&format!("{PATH}.weight"), whole(&[4, 6], 0.5)),
            "lora_A and lora_B as well",
        ),
    ];
    for (extra, change, wanted) in cases {
        let error = with(extra, change).expect_err(wanted);
        assert!(error.to_string().contains(wanted), "wanted {wanted}: {error}");
    }
    let mut short = whole(&[3, 6], 0.5);
    short.bytes.pop();
    let error =
        with(r#""modules_to_save":["lm_head"]"#, |t| t.whole = one("lm_head.weight", short)).expect_err("short");
    assert!(error.to_string().contains("71 bytes do not make the shape [3, 6]"), "{error}");
}

fn prompt(config: &str, rows: usize, token_dim: usize, change: impl FnOnce(&mut Tensors)) -> Result<Adapter> {
    let values = (0..rows * token_dim).map(|at| at as f32).collect();
    let mut tensors = Tensors { prompt: Some(PromptEmbeddings { rows, token_dim, values }), ..Tensors::default() };
    change(&mut tensors);
    let json = format!(r#"{{"peft_type":"PROMPT_TUNING",{config}}}"#);
    Adapter::with_tensors(AdapterConfig::parse(json.as_bytes())?, tensors)
}

#[test]
fn a_prompt_says_its_tokens_and_comes_back_to_the_byte() {
    let adapter = prompt(r#""num_virtual_tokens":3,"token_dim":4"#, 3, 4, |_| ()).expect("sound");
    assert_eq!(adapter.prompt().map(|(tokens, values)| (tokens, values.len())), Some((3, 12)));
    assert_eq!((adapter.size_bytes(), adapter.max_rank(), adapter.pairs().len()), (48, 0, 0));
    let (config, weights) = (adapter.config_to_bytes(), adapter.weights_to_bytes().expect("written"));
    let back = Adapter::from_bytes(&config, &weights, &Limits::default()).expect("reads");
    assert_eq!(back.tensors(), adapter.tensors());
    assert_eq!(back.weights_to_bytes().expect("written"), weights);
    let t5 = prompt(r#""num_virtual_tokens":3,"task_type":"SEQ_2_SEQ_LM""#, 6, 4, |_| ()).expect("an encoder-decoder");
    assert_eq!(t5.prompt().map(|(tokens, values)| (tokens, values.len())), Some((3, 12)), "the first half counts");
}

#[test]
fn a_prompt_that_its_config_does_not_speak_of_is_refused() {
    let plain = r#""num_virtual_tokens":3,"token_dim":4"#;
    let refused = |config: &str, rows, dim, change: fn(&mut Tensors), wanted: &str| {
        let error = prompt(config, rows, dim, change).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(plain, 2, 4, |_| (), "shape 2x4 where the config says 3x4");
    refused(plain, 3, 5, |_| (), "shape 3x5 where the config says 3x4");
    refused(plain, 3, 4, |tensors| tensors.pairs = one(PATH, pair(2, 6, 4)), "other tensors stand beside it");
    refused(plain, 3, 4, |tensors| tensors.prompt = None, "missing; the config is that of prompt tuning");
    let poison = |tensors: &mut Tensors| tensors.prompt.as_mut().expect("there").values[7] = f32::NAN;
    refused(plain, 3, 4, poison, "value 7 is not a finite number");
    refused(r#""num_virtual_tokens":0"#, 3, 4, |_| (), "0 is outside 1 to 4096");
    refused(r#""token_dim":4"#, 3, 4, |_| (), "num_virtual_tokens: missing");
    refused(r#""num_virtual_tokens":3,"encoder_hidden_size":9"#, 3, 4, |_| (), "encoder_hidden_size");
    let lora = with("\"lora_dropout\":0", |tensors| {
        tensors.prompt = Some(PromptEmbeddings { rows: 1, token_dim: 1, values: vec![1.0] });
    });
    assert!(lora.expect_err("LoRA").to_string().contains("the config is LoRA's"));
}

#[test]
fn a_prompt_fits_a_base_whose_embedding_has_its_width() {
    use crate::BaseShapes;
    let adapter = prompt(r#""num_virtual_tokens":3"#, 3, 4, |_| ()).expect("sound");
    let base =
        |name: &str, width| BaseShapes::new(BTreeMap::new(), BTreeMap::from([(name.to_owned(), vec![9, width])]));
    adapter.check_against(&base("model.embed_tokens.weight", 4)).expect("a decoder");
    adapter.check_against(&base("shared.weight", 4)).expect("an encoder-decoder");
    let error = adapter.check_against(&base("shared.weight", 5)).expect_err("another width").to_string();
    assert!(error.contains("have 4 values, the base's embedding is 9x5"), "{error}");
    assert!(adapter.check_against(&base("other.weight", 4)).expect_err("none").to_string().contains("no embedding"));
    for refused in [adapter.spectrum().map(drop), adapter.compress(crate::Keep::Rank(1)).map(drop)] {
        let error = refused.expect_err("no low rank").to_string();
        assert!(error.contains("virtual tokens only (prompt tuning)"), "{error}");
    }
}
