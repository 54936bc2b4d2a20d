//! Whole folders: equal to what transformers saves, and refused with a name when something is wrong.

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use tailor_domain::{Family, QuantCode};
use tailor_quant::{Checkpoint, Error, QuantOptions, fingerprint, quantize_folder};

use crate::golden_folder;

fn quantize_to(source: &Path, target: &Path) -> Result<tailor_quant::QuantReport, Error> {
    quantize_folder(source, target, &QuantOptions::default(), &mut |_| {})
}

/// A copy of a golden folder that a test may spoil.
fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden_folder("models").join(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

#[test]
fn folder_has_the_tensors_that_transformers_saves() {
    for name in ["llama-gqa", "t5-v11"] {
        let source = golden_folder("models").join(name);
        let target = tempfile::tempdir().unwrap();
        let mut seen = Vec::new();
        let report = quantize_folder(&source, target.path(), &QuantOptions::default(), &mut |progress| {
            seen.push((progress.done, progress.of));
        })
        .unwrap();
        assert_eq!(seen.last().map(|(done, of)| done == of), Some(true));

        let (ours, theirs) = (
            Checkpoint::open(target.path()).unwrap(),
            Checkpoint::open(&golden_folder("models").join(format!("{name}-nf4"))).unwrap(),
        );
        assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>(), "{name}");
        for tensor in ours.names() {
            let (a, b) = (ours.tensor(tensor).unwrap(), theirs.tensor(tensor).unwrap());
            assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape), "{name}: {tensor}");
            assert_eq!(a.bytes.to_vec(), b.bytes.to_vec(), "{name}: {tensor}");
        }
        assert!(report.quantized >= 14);
        let expected = if name == "t5-v11" { Family::EncoderDecoder } else { Family::Decoder };
        assert_eq!(report.family, expected);
    }
}

#[test]
fn fingerprint_changes_with_weights_and_coding_only() {
    let folder = copy_of("llama-gqa");
    let options = QuantOptions::default();
    let target = tempfile::tempdir().unwrap();
    let report = quantize_to(folder.path(), target.path()).unwrap();
    assert_eq!(fingerprint(folder.path(), &options.coding()).unwrap(), report.fingerprint);

    fs::write(folder.path().join("README.md"), "words").unwrap();
    assert_eq!(fingerprint(folder.path(), &options.coding()).unwrap(), report.fingerprint);
    let single = QuantOptions { code: QuantCode::Nf4Single, ..options.clone() };
    assert_ne!(fingerprint(folder.path(), &single.coding()).unwrap(), report.fingerprint);

    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert_ne!(fingerprint(folder.path(), &options.coding()).unwrap(), report.fingerprint);
}

#[test]
fn fingerprint_covers_every_file_of_the_tokenizer() {
    let folder = copy_of("llama-gqa");
    let coding = QuantOptions::default().coding();
    let mut seen = vec![fingerprint(folder.path(), &coding).unwrap()];
    for name in ["tokenizer.json", "tokenizer.model", "spiece.model", "tokenizer_config.json", "chat_template.jinja"] {
        for content in ["one", "two"] {
            fs::write(folder.path().join(name), content).unwrap();
            let next = fingerprint(folder.path(), &coding).unwrap();
            assert!(!seen.contains(&next), "{name} with {content:?} changes nothing");
            seen.push(next);
        }
    }
}

#[test]
fn every_code_survives_the_way_through_a_folder() {
    let source = golden_folder("models").join("llama-gqa");
    let name = "model.layers.0.self_attn.q_proj.weight";
    let original = Checkpoint::open(&source).unwrap().tensor(name).unwrap();
    let original = original.float().unwrap().decode(&original.bytes);
    for (code, worst) in
        [(QuantCode::Nf4, 0.16), (QuantCode::Nf4Single, 0.16), (QuantCode::Fp4, 0.2), (QuantCode::Uniform4, 0.08)]
    {
        let target = tempfile::tempdir().unwrap();
        let options = QuantOptions { code, ..QuantOptions::default() };
        quantize_folder(&source, target.path(), &options, &mut |_| {}).unwrap();
        let weight = Checkpoint::open(target.path()).unwrap().quantized(name).unwrap().unwrap();
        let mut values = vec![0f32; weight.elements()];
        weight.dequantize_f32(&mut values);
        for (block, original) in values.chunks(64).zip(original.chunks(64)) {
            let scale = original.iter().fold(0f32, |max, x| max.max(x.abs()));
            let error = block.iter().zip(original).fold(0f32, |max, (x, y)| max.max((x - y).abs()));
            assert!(error <= worst * scale, "{code:?}: error {error} at scale {scale}");
        }
    }
}

#[test]
fn folder_already_in_4_bits_is_copied() {
    let source = golden_folder("models").join("llama-gqa-nf4");
    let target = tempfile::tempdir().unwrap();
    // Asked for or not: what it is in stays.
    let options = QuantOptions { code: QuantCode::Fp4, ..QuantOptions::default() };
    let report = quantize_folder(&source, target.path(), &options, &mut |_| {}).unwrap();
    assert_eq!((report.quantized, report.code), (0, QuantCode::Nf4));
    let (ours, theirs) = (Checkpoint::open(target.path()).unwrap(), Checkpoint::open(&source).unwrap());
    for name in theirs.names() {
        assert_eq!(ours.tensor(name).unwrap().bytes.to_vec(), theirs.tensor(name).unwrap().bytes.to_vec());
    }
    assert_eq!(report.parameters, quantize_report_parameters("llama-gqa"));
}

fn quantize_report_parameters(name: &str) -> u64 {
    let checkpoint = Checkpoint::open(&golden_folder("models").join(name)).unwrap();
    checkpoint.names().map(|name| checkpoint.tensor(name).unwrap().elements() as u64).sum()
}

#[test]
fn weight_that_is_not_finite_is_refused_by_name() {
    for (spoiled, problem) in
        [("model.layers.1.mlp.up_proj.weight", "value 0 is inf"), ("model.norm.weight", "value 0 is not finite")]
    {
        refuse_infinity_in(spoiled, problem);
    }
}

fn refuse_infinity_in(spoiled: &str, problem: &str) {
    let folder = copy_of("llama-gqa");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensors: Vec<_> = checkpoint
        .names()
        .map(|name| {
            let tensor = checkpoint.tensor(name).unwrap();
            let mut bytes = tensor.bytes.to_vec();
            if name == spoiled {
                bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
            }
            (name.to_owned(), tensor.dtype, tensor.shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let spoiled_folder = tempfile::tempdir().unwrap();
    fs::copy(folder.path().join("config.json"), spoiled_folder.path().join("config.json")).unwrap();
    serialize_to_file(views, None, &spoiled_folder.path().join("model.safetensors")).unwrap();

    let target = tempfile::tempdir().unwrap();
    let message = quantize_to(spoiled_folder.path(), target.path()).unwrap_err().to_string();
    assert!(message.contains(spoiled) && message.contains(problem), "{message}");
    assert!(!target.path().join("config.json").exists(), "an unfinished target has no config");
}

#[test]
fn hostile_tensor_files_are_refused_by_path() {
    let refused = |spoil: &dyn Fn(&Path)| {
        let folder = copy_of("llama-gqa");
        spoil(folder.path());
        match Checkpoint::open(folder.path()) {
            Ok(_) => panic!("must be refused"),
            Err(error) => error.to_string(),
        }
    };
    let weights = |folder: &Path| folder.join("model.safetensors");
    let empty = refused(&|folder| fs::write(weights(folder), b"").unwrap());
    assert!(empty.contains("model.safetensors"), "{empty}");
    let huge_header = refused(&|folder| fs::write(weights(folder), u64::MAX.to_le_bytes()).unwrap());
    assert!(huge_header.contains("not safetensors"), "{huge_header}");
    let cut = refused(&|folder| {
        let bytes = fs::read(weights(folder)).unwrap();
        fs::write(weights(folder), &bytes[..bytes.len() - 5]).unwrap();
    });
    assert!(cut.contains("model.safetensors"), "{cut}");
    let nothing = refused(&|folder| fs::remove_file(weights(folder)).unwrap());
    assert!(nothing.contains("only safetensors checkpoints are read"), "{nothing}");
    let escaping = refused(&|folder| {
        fs::remove_file(weights(folder)).unwrap();
        let index = r#"{"weight_map": {"a": "../../etc/model.safetensors"}}"#;
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    });
    assert!(escaping.contains("no plain file name"), "{escaping}");
    let missing = refused(&|folder| {
        fs::rename(weights(folder), folder.join("a.safetensors")).unwrap();
        let index = r#"{"weight_map": {"not.there": "a.safetensors"}}"#;
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    });
    assert!(missing.contains("\"not.there\""), "{missing}");
}

#[cfg(unix)]
#[test]
fn a_pipe_or_a_folder_in_place_of_a_file_is_refused_and_not_waited_for() {
    for name in ["model.safetensors", "model.safetensors.index.json"] {
        let folder = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo").arg(folder.path().join(name)).status().unwrap();
        assert!(made.success());
        let error = Checkpoint::open(folder.path()).err().expect("a pipe").to_string();
        assert!(error.contains(name) && error.contains("no regular file"), "{error}");
        fs::remove_file(folder.path().join(name)).unwrap();
        fs::create_dir(folder.path().join(name)).unwrap();
        let error = Checkpoint::open(folder.path()).err().expect("a folder").to_string();
        assert!(error.contains(name) && error.contains("no regular file"), "{error}");
    }
    let folder = copy_of("llama-gqa");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(folder.path().join("config.json")).status().unwrap().success());
    let error = fingerprint(folder.path(), "nf4").unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("no regular file"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_link_to_a_file_is_followed_as_a_hub_s_cache_needs() {
    let folder = tempfile::tempdir().unwrap();
    let file = golden_folder("models").join("llama-gqa/model.safetensors").canonicalize().unwrap();
    std::os::unix::fs::symlink(file, folder.path().join("model.safetensors")).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().contains("model.norm.weight"));
}

#[test]
fn parts_of_a_4_bit_weight_that_do_not_fit_are_refused_by_tensor() {
    let source = Checkpoint::open(&golden_folder("models").join("llama-gqa-nf4")).unwrap();
    let weight = "model.layers.0.self_attn.q_proj.weight";
    let refused = |part: &str, change: &dyn Fn(&mut Vec<u8>, &mut Vec<usize>)| {
        let tensors: Vec<_> = source
            .names()
            .map(|name| {
                let tensor = source.tensor(name).unwrap();
                let (mut bytes, mut shape) = (tensor.bytes.to_vec(), tensor.shape.clone());
                if name == part {
                    change(&mut bytes, &mut shape);
                }
                (name.to_owned(), tensor.dtype, shape, bytes)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        let folder = tempfile::tempdir().unwrap();
        serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
        Checkpoint::open(folder.path()).unwrap().quantized(weight).unwrap_err().to_string()
    };
    let halved = |bytes: &mut Vec<u8>, shape: &mut Vec<usize>| {
        bytes.truncate(bytes.len() / 2);
        shape[0] /= 2;
    };
    let short = refused(weight, &halved);
    assert!(short.contains("packed weight has 256 entries"), "{short}");
    let scales = refused(&format!("{weight}.absmax"), &halved);
    assert!(scales.contains("absmax has 8 entries"), "{scales}");
    let infinite = refused(&format!("{weight}.nested_absmax"), &|bytes, _| {
        bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(infinite.contains("nested_absmax contains NaN"), "{infinite}");
    let state = refused(&format!("{weight}.quant_state.bitsandbytes__nf4"), &|bytes, _| bytes[0] = b'!');
    assert!(state.contains("quant_state is not readable"), "{state}");
    let map = refused(&format!("{weight}.quant_map"), &halved);
    assert!(map.contains("16 are needed"), "{map}");
}

#[test]
fn target_that_is_not_empty_is_left_alone() {
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("precious"), "x").unwrap();
    let message = quantize_to(&golden_folder("models").join("llama-gqa"), target.path()).unwrap_err().to_string();
    assert!(message.contains("not empty"), "{message}");
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 1);
}

#[test]
fn shards_are_read_as_one() {
    let whole = Checkpoint::open(&golden_folder("models").join("llama-gqa")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<&str> = whole.names().collect();
    let mut map = serde_json::Map::new();
    for (i, part) in names.chunks(names.len().div_ceil(3)).enumerate() {
        let shard = format!("model-{i}.safetensors");
        let tensors: Vec<_> = part.iter().map(|name| (*name, whole.tensor(name).unwrap())).collect();
        let views = tensors
            .iter()
            .map(|(name, tensor)| (*name, TensorView::new(Dtype::F32, tensor.shape.clone(), &tensor.bytes).unwrap()));
        serialize_to_file(views, None, &folder.path().join(&shard)).unwrap();
        map.extend(part.iter().map(|name| ((*name).to_owned(), shard.clone().into())));
    }
    let index = serde_json::json!({ "weight_map": map });
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let shards = Checkpoint::open(folder.path()).unwrap();
    for name in names {
        assert_eq!(shards.tensor(name).unwrap().bytes.to_vec(), whole.tensor(name).unwrap().bytes.to_vec());
    }
}
