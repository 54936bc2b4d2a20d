use super::*;
use crate::adapter::tests::{PATH, one, pair, whole};

/// One of each kind.
fn sound() -> Tensors {
    let other = "model.layers.10.self_attn.q_proj".to_owned();
    Tensors {
        pairs: BTreeMap::from([(PATH.to_owned(), pair(2, 6, 4)), (other, pair(3, 5, 7))]),
        magnitudes: one(PATH, vec![1.0, 0.5, -2.0, 3.0]),
        lora_biases: one(PATH, vec![0.25; 4]),
        whole: BTreeMap::from([
            ("lm_head.weight".to_owned(), whole(&[3, 6], 0.75)),
            (format!("{PATH}.bias"), whole(&[4], -1.0)),
            ("model.layers.0.self_attn.k_proj.bias".to_owned(), whole(&[4], -2.0)),
        ]),
        ..Tensors::default()
    }
}

/// A safetensors file from a header and as many data bytes as one wishes.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn tensors(list: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let views = list.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).expect("test data fits its shape"))
    });
    safetensors::serialize(views, None).expect("serialises")
}

#[test]
fn what_is_written_is_read_back_and_is_the_same_bytes() {
    let bytes = write(&sound()).expect("writes");
    assert_eq!(read(&bytes).expect("reads"), sound());
    assert_eq!(write(&sound()).expect("writes"), bytes);
    let header = String::from_utf8_lossy(&bytes[8..]);
    assert!(header.starts_with(r#"{"__metadata__":{"format":"pt"},"base_model.model.lm_head.weight"#), "{header}");
    assert!(header.contains(r#""base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias""#), "{header}");
    assert!(header.contains(r#""base_model.model.model.layers.0.self_attn.k_proj.bias""#), "{header}");
}

/// The same file with the metadata that every file of ours has.
fn with_format(bytes: &[u8]) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).expect("sound");
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(file.tensors(), Some(metadata)).expect("serialises")
}

#[test]
fn half_precision_is_widened_exactly() {
    let ones = |bits: u16, n: usize| bits.to_le_bytes().repeat(n);
    let bytes = tensors(&[
        ("base_model.model.q.lora_A.weight", Dtype::BF16, vec![1, 2], ones(bf16::from_f32(0.15625).to_bits(), 2)),
        ("base_model.model.q.lora_B.weight", Dtype::F16, vec![3, 1], ones(f16::from_f32(-2.5).to_bits(), 3)),
    ]);
    let read = read(&bytes).expect("reads");
    assert_eq!(write(&read).expect("writes"), with_format(&bytes), "and is written as it was");
    assert_eq!(
        read.pairs["q"],
        LoraPair { a: vec![0.15625; 2], b: vec![-2.5; 3], rank: 1, in_features: 2, out_features: 3 }
    );
}

#[test]
fn a_pickle_is_refused_with_the_reason() {
    for pickle in [&b"PK\x03\x04rest of a zip"[..], &b"\x80\x02}q\x00."[..], &b"\x80\x05rest"[..]] {
        let error = read(pickle).expect_err("pickle");
        assert!(error.to_string().contains("pickle"), "{error}");
    }
}

#[test]
fn a_header_as_long_as_a_pickle_begins_is_read() {
    for header_bytes in [0x280usize, 0x380, 0x480, 0x580] {
        let header = r#"{"base_model.model.q.lora_A.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},
            "base_model.model.q.lora_B.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}"#;
        let padded = format!("{header:header_bytes$}");
        assert_eq!(read(&raw(&padded, &[0; 8])).expect("sound").pairs.len(), 1);
    }
}

#[test]
fn hostile_headers_are_refused_without_an_allocation_of_their_size() {
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend(b"{}");
    for (bytes, wanted) in [
        (Vec::new(), "too short"),
        (vec![1, 2, 3], "too short"),
        (huge, "header claims"),
        ((2u64 << 20).to_le_bytes().to_vec(), "header claims"),
        (100u64.to_le_bytes().to_vec(), "not valid"),
        (raw("{", b""), "not valid"),
        (raw("[]", b""), "not valid"),
        (raw(r#"{"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, b""), "not valid"),
        (raw(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, b""), "not valid"),
        (raw(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, b"1234"), "not valid"),
        (raw(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, b"12345678"), "not valid"),
    ] {
        let error = read(&bytes).expect_err(wanted);
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

#[test]
fn too_many_tensors_are_refused() {
    let names: Vec<String> = (0..=MAX_TENSORS).map(|n| format!("t{n}")).collect();
    let views = names.iter().map(|name| (name.as_str(), TensorView::new(Dtype::U8, vec![0], &[]).expect("empty")));
    let error = read(&safetensors::serialize(views, None).expect("serialises")).expect_err("too many");
    assert!(error.to_string().contains("10001 tensors") || error.to_string().contains("header claims"), "{error}");
}

#[test]
fn tensors_that_are_no_lora_pair_are_refused_by_name() {
    let f32s = |n: usize| vec![0u8; 4 * n];
    let a = ("base_model.model.q.lora_A.weight", Dtype::F32, vec![2, 3], f32s(6));
    let b = ("base_model.model.q.lora_B.weight", Dtype::F32, vec![3, 2], f32s(6));
    for (list, wanted) in [
        (vec![a.clone()], "no lora_B"),
        (vec![b.clone()], "no lora_A"),
        (
            vec![a.clone(), ("base_model.model.q.lora_B.weight", Dtype::F32, vec![2, 3], f32s(6))],
            "rank 2 and lora_B has rank 3",
        ),
        (vec![("q.lora_A.weight", Dtype::F32, vec![2, 3], f32s(6))], "base_model.model."),
        (
            vec![("base_model.model.e.base_layer.weight", Dtype::F32, vec![2, 3], f32s(6))],
            "LoRA on an embedding is not supported",
        ),
        (
            vec![("base_model.model.lm_head.base_layer.weight", Dtype::F32, vec![2, 3], f32s(6))],
            "but as base_model.model.lm_head.weight",
        ),
        (vec![("base_model.model.lm_head.weight", Dtype::U8, vec![6], vec![0; 6])], "U8"),
        (vec![("base_model.model.lm_head.scale", Dtype::F32, vec![2, 3], f32s(6))], "nor anything else"),
        (vec![("base_model.model.q.lora_A.default.weight", Dtype::F32, vec![2, 3], f32s(6))], "neither lora_A"),
        (vec![("base_model.model.q.lora_magnitude_vector", Dtype::F32, vec![3, 1], f32s(3))], "no vector"),
        (
            vec![
                ("base_model.model.q.bias", Dtype::F32, vec![3], f32s(3)),
                ("base_model.model.q.base_layer.bias", Dtype::F32, vec![3], f32s(3)),
            ],
            "another tensor for the same parameter",
        ),
        (vec![a.clone(), b.clone(), ("base_model.model.q.bias", Dtype::F32, vec![3], f32s(3))], "q.base_layer.bias"),
        (vec![("base_model.model.e.lora_embedding_A", Dtype::F32, vec![2, 3], f32s(6))], "embedding"),
        (vec![("base_model.model..lora_A.weight", Dtype::F32, vec![2, 3], f32s(6))], "no module path"),
        (vec![("base_model.model.q.lora_A.weight", Dtype::F32, vec![6], f32s(6))], "no matrix"),
        (vec![("base_model.model.q.lora_A.weight", Dtype::F32, vec![0, 3], f32s(0))], "no value"),
        (vec![("base_model.model.q.lora_A.weight", Dtype::I32, vec![2, 3], f32s(6))], "I32"),
        (vec![("base_model.model.q.lora_A.weight", Dtype::F32, vec![2, 3], vec![0xff; 24])], "not a finite number"),
        (
            vec![
                ("base_model.model.q.lora_A.weight", Dtype::F32, vec![2048, 1], f32s(2048)),
                ("base_model.model.q.lora_B.weight", Dtype::F32, vec![1, 2048], f32s(2048)),
            ],
            "rank 2048",
        ),
    ] {
        let error = read(&tensors(&list)).expect_err(wanted);
        assert!(error.to_string().contains(wanted), "wanted {wanted}: {error}");
    }
}

#[test]
fn no_corruption_of_a_file_panics() {
    let sound = write(&sound()).expect("writes");
    // A small multiplicative generator: every byte position is hit over the rounds, reproducibly.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..4000 {
        let mut bytes = sound.clone();
        for _ in 0..=next() % 3 {
            let at = next() as usize % bytes.len();
            bytes[at] = next() as u8;
        }
        if next() % 4 == 0 {
            bytes.truncate(next() as usize % bytes.len());
        }
        // Either outcome is right; what counts is that there is one.
        let _ = read(&bytes);
    }
}
