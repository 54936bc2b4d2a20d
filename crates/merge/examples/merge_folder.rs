//! Merges a PEFT folder into a base's folder, without any service: `merge_folder BASE ADAPTER TARGET COMPUTE DTYPE [CODE]`,
//! the types by their names in PyTorch. Prints the report as JSON. For tests/parity/check_merge.py.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, bail};
use tailor_domain::QuantCode;
use tailor_merge::{MergeOptions, merge_folder};
use tailor_peft::{Adapter, Limits};
use tailor_quant::Float;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter, target, compute, dtype, code @ ..] = words.as_slice() else {
        bail!("write merge_folder BASE ADAPTER TARGET COMPUTE DTYPE [nf4]");
    };
    let float = |name: &str| Float::parse(name).with_context(|| format!("{name:?} is no float type"));
    let requantize = match code {
        [] => None,
        [code] if code == "nf4" => Some(QuantCode::Nf4),
        other => bail!("{other:?}: nf4 or nothing"),
    };
    let adapter = Adapter::read_dir(Path::new(adapter), &Limits::default())?;
    let options =
        MergeOptions { compute: float(compute)?, dtype: float(dtype)?, requantize, ..MergeOptions::default() };
    let report =
        merge_folder(Path::new(base), &adapter, Path::new(target), &options, &mut |_| ControlFlow::Continue(()))?;
    let all = report.difference();
    let document = serde_json::json!({
        "changed": report.changed.len(), "untied": report.untied, "error_of_update": all.error_of_update(),
        "survives": all.survives(), "worst": report.worst().map(|(name, _)| name),
    });
    println!("{document}");
    Ok(())
}
