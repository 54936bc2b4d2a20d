//! Writes GGUF files without any service: `write_gguf model FOLDER FILE TYPE`, or `write_gguf adapter FOLDER ADAPTER FILE
//! TYPE` for the adapter alone, the types by their names in PyTorch. Prints the report as JSON. `write_gguf tokens FOLDER
//! TEXT …` prints what a folder's tokenizer makes of texts. For tests/parity/check_gguf.py.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::json;
use tailor_gguf::{AdapterOptions, ModelOptions, write_adapter, write_model};
use tailor_peft::{Adapter, Limits};
use tailor_quant::Float;
use tailor_text::Tokenizer;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let float = |name: &str| Float::parse(name).with_context(|| format!("{name:?} is no float type"));
    let document = match words.as_slice() {
        ["model", folder, file, kind] => {
            let options = ModelOptions { float: float(kind)?, ..ModelOptions::default() };
            let report = write_model(Path::new(folder), Path::new(file), &options, &mut |_| {})?;
            json!({ "architecture": report.architecture, "tensors": report.tensors, "bytes": report.bytes,
                    "notes": report.notes })
        }
        ["adapter", folder, adapter, file, kind] => {
            let config = std::fs::read(Path::new(folder).join("config.json"))?;
            let adapter = Adapter::read_dir(Path::new(adapter), &Limits::default())?;
            let options = AdapterOptions { float: float(kind)?, ..AdapterOptions::default() };
            let report = write_adapter(&config, &adapter, Path::new(file), &options)?;
            json!({ "architecture": report.architecture, "layers": report.layers, "bytes": report.bytes,
                    "alpha": report.alpha, "folded": report.folded })
        }
        ["tokens", folder, texts @ ..] => {
            let tokenizer = Tokenizer::open(Path::new(folder))?;
            let ids: Result<Vec<_>, _> = texts.iter().map(|text| tokenizer.encode_with_special(text)).collect();
            json!(ids?)
        }
        _ => bail!("write model FOLDER FILE TYPE, adapter FOLDER ADAPTER FILE TYPE, or tokens FOLDER TEXT …"),
    };
    println!("{document}");
    Ok(())
}
