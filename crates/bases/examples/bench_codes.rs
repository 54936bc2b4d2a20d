//! What each 4-bit code costs in exactness: the error of every layer of the shipped bases, and what is left of the model.
//!
//! `cargo xtask bench codes [BASE …] [--rows 500] [--layers]`
//!
//! A weight's error is the root mean square of what quantising changes over that of the weight, and the largest change
//! over the largest weight. A model's is told on held-out rows (`tailor_corpus::rows::held_out`), the same for all: the
//! perplexity of a correct sentence that is to be given back, which the bases have learnt; that of the right sentence in
//! answer to a faulty one, which they have not; and on the latter the mean Kullback-Leibler divergence from the dense
//! model's predictions, which unlike perplexity cannot gain by accident. Tables in Markdown, for docs/quantisation.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use rand::{Rng, SeedableRng};
use tailor_corpus::rows;
use tailor_domain::QuantCode;
use tailor_models::{Base, Config, Input, LoadOptions, Pass};
use tailor_quant::{
    Backend, BlockSize, Checkpoint, Code, Float, QuantOptions, Quantized, Scales, quantize, quantize_folder,
};
use tailor_text::{Example, ExampleBuilder, PromptTemplate, Tokenizer};
use tch::{Kind, Tensor};

/// Code and block size of each line; the first is what the others are compared with.
const ARMS: [(QuantCode, usize); 9] = [
    (QuantCode::None, 64),
    (QuantCode::Nf4, 64),
    (QuantCode::Nf4Single, 64),
    (QuantCode::Fp4, 64),
    (QuantCode::Uniform4, 64),
    (QuantCode::Nf4, 32),
    (QuantCode::Nf4, 256),
    (QuantCode::Nf4, 1024),
    (QuantCode::Nf4, 4096),
];

#[derive(Parser)]
struct Arguments {
    #[arg(default_values = ["bases/tiny-llama", "bases/tiny-t5"])]
    bases: Vec<PathBuf>,
    /// Held-out rows.
    #[arg(long, default_value_t = 500)]
    rows: usize,
    /// Every layer, not only each kind of layer.
    #[arg(long)]
    layers: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    normal_weights()?;
    for folder in &arguments.bases {
        println!("\n## {}\n", folder.display());
        report(folder, &arguments).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}

/// What one code does to one weight.
#[derive(Clone, Copy)]
struct Damage {
    /// Root mean square of the change over that of the weight.
    rms: f64,
    /// Largest change over the largest weight.
    largest: f64,
    bits: f64,
}

impl Damage {
    fn of(values: &[f32], weight: &Quantized) -> Self {
        let mut back = vec![0f32; values.len()];
        weight.dequantize_f32(&mut back);
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |max: f64, x| max.max(x.abs()));
        let change = || values.iter().zip(&back).map(|(x, y)| f64::from(x - y));
        let whole = || values.iter().map(|&x| f64::from(x));
        // Without the maps, which are the same for every weight.
        let scales = match weight.scales() {
            Scales::Single(absmax) => 4 * absmax.len(),
            Scales::Nested { codes, absmax, .. } => codes.len() + 4 * absmax.len(),
            Scales::Affine { width, minimum } => 4 * (width.len() + minimum.len()),
        };
        Self {
            rms: (square(&mut change()) / square(&mut whole())).sqrt(),
            largest: largest(&mut change()) / largest(&mut whole()),
            bits: 8.0 * (weight.packed().len() + scales) as f64 / values.len() as f64,
        }
    }
}

/// The codes on the distribution that NF4 is made for.
fn normal_weights() -> Result<()> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    // Box and Muller's: two even numbers make a normal one.
    let mut normal = || {
        let (radius, angle) = (1.0 - random.random::<f32>(), random.random::<f32>());
        0.02 * (-2.0 * radius.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
    };
    let values: Vec<f32> = (0..1 << 20).map(|_| normal()).collect();
    println!("## 1,048,576 normal values\n\n| code, block | bits a parameter | RMS error, % | largest error, % |");
    println!("| --- | --- | --- | --- |");
    for &(code, size) in &ARMS[1..] {
        let (book, double) = match code {
            QuantCode::Nf4 => (Code::Nf4, true),
            QuantCode::Nf4Single | QuantCode::None => (Code::Nf4, false),
            QuantCode::Fp4 => (Code::Fp4, false),
            QuantCode::Uniform4 => (Code::Uniform4, false),
        };
        let blocksize = BlockSize::try_new(size)?;
        let weight = quantize(&values, &[values.len()], Float::F32, book, blocksize, double, Backend::Cpu)?;
        let damage = Damage::of(&values, &weight);
        let name = code.as_str();
        println!("| {name}, {size} | {:.3} | {:.2} | {:.1} |", damage.bits, 100.0 * damage.rms, 100.0 * damage.largest);
    }
    Ok(())
}

fn report(folder: &Path, arguments: &Arguments) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let source = Checkpoint::open(folder)?;
    let pairs = rows::held_out(arguments.rows);
    let mut dense = Vec::new();
    let mut layers: BTreeMap<String, Vec<Damage>> = BTreeMap::new();
    let mut lines = Vec::new();
    for (code, size) in ARMS {
        let target = scratch.path().join(format!("{}-{size}", code.as_str()));
        let options = QuantOptions { code, blocksize: BlockSize::try_new(size)?, ..QuantOptions::default() };
        quantize_folder(folder, &target, &options, &mut |_| {})?;
        let damage = damages(&source, &Checkpoint::open(&target)?)?;
        let base = Base::load(&target, &LoadOptions::default())?;
        let template = PromptTemplate::parse("Correct the grammar: {input}", None)?;
        let builder = ExampleBuilder::new(Tokenizer::open(&target)?, template, base.family())?;
        let copies = pairs.iter().map(|pair| builder.example(&pair.expected, &pair.expected, usize::MAX));
        let (copied, _) = scores(&base, copies, &mut Vec::new())?;
        let corrections = pairs.iter().map(|pair| builder.example(&pair.text, &pair.expected, usize::MAX));
        let (corrected, divergence) = scores(&base, corrections, &mut dense)?;
        let mean = |of: fn(&Damage) -> f64| damage.values().map(of).sum::<f64>() / damage.len().max(1) as f64;
        let worst = damage.values().map(|damage| damage.rms).fold(0.0, f64::max);
        lines.push(match code {
            QuantCode::None => format!("| none | 16 | – | – | – | {copied:.4} | {corrected:.4} | – |"),
            _ => format!(
                "| {}, {size} | {:.3} | {:.2} | {:.2} | {:.1} | {copied:.4} | {corrected:.4} | {divergence:.4} |",
                code.as_str(),
                mean(|damage| damage.bits),
                100.0 * mean(|damage| damage.rms),
                100.0 * worst,
                100.0 * damage.values().map(|damage| damage.largest).fold(0.0, f64::max),
            ),
        });
        let shown = (code, size) != ARMS[0] && size == 64;
        for (layer, damage) in damage.into_iter().filter(|_| shown) {
            layers.entry(layer).or_default().push(damage);
        }
    }
    println!(
        "| code, block | bits a parameter | RMS error, mean % | worst layer, % | largest error, % | perplexity, giving back \
         | perplexity, correcting | KL, nats a token |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |\n{}", lines.join("\n"));
    println!("\nRMS error, % (largest error, %) by layer, blocks of 64:\n");
    let rows = if arguments.layers { layers } else { by_kind(layers) };
    println!("| layer | {} |", ARMS[1..5].iter().map(|(code, _)| code.as_str()).collect::<Vec<_>>().join(" | "));
    println!("| --- | --- | --- | --- | --- |");
    for (layer, damage) in rows {
        let cell = |damage: &Damage| format!("{:.2} ({:.1})", 100.0 * damage.rms, 100.0 * damage.largest);
        println!("| {layer} | {} |", damage.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// Every weight that is quantised in `target`, by its layer.
fn damages(source: &Checkpoint, target: &Checkpoint) -> Result<BTreeMap<String, Damage>> {
    let mut damages = BTreeMap::new();
    for name in source.names() {
        let (Some(weight), Some(layer)) = (target.quantized(name)?, name.strip_suffix(".weight")) else { continue };
        let tensor = source.tensor(name)?;
        let values = tensor.float().with_context(|| format!("{name} is no float"))?.decode(&tensor.bytes);
        damages.insert(layer.to_owned(), Damage::of(&values, &weight));
    }
    Ok(damages)
}

/// The mean over all layers of one kind: those whose names differ in numbers only.
fn by_kind(layers: BTreeMap<String, Vec<Damage>>) -> BTreeMap<String, Vec<Damage>> {
    let mut kinds: BTreeMap<String, Vec<Vec<Damage>>> = BTreeMap::new();
    for (layer, damage) in layers {
        let words = layer.split('.').map(|word| if word.parse::<u32>().is_ok() { "*" } else { word });
        kinds.entry(words.collect::<Vec<_>>().join(".")).or_default().push(damage);
    }
    let mean = |all: &[Vec<Damage>], code: usize| {
        let mean = |of: fn(&Damage) -> f64| all.iter().map(|damage| of(&damage[code])).sum::<f64>() / all.len() as f64;
        Damage {
            rms: mean(|damage| damage.rms),
            largest: mean(|damage| damage.largest),
            bits: mean(|damage| damage.bits),
        }
    };
    let means = |all: Vec<Vec<Damage>>| (0..all[0].len()).map(|code| mean(&all, code)).collect();
    kinds.into_iter().map(|(kind, all)| (kind, means(all))).collect()
}

/// Perplexity of the targets, and the divergence from `dense`: the predictions of the first model asked, kept there.
fn scores(
    base: &Base,
    examples: impl Iterator<Item = tailor_text::Result<Example>>,
    dense: &mut Vec<Tensor>,
) -> Result<(f64, f64)> {
    let (mut loss, mut divergence, mut tokens) = (0.0, 0.0, 0);
    for (row, example) in examples.enumerate() {
        let (predicted, targets) = tch::no_grad(|| predictions(base, &example?))?; // (n, V), (n)
        tokens += targets.size()[0];
        loss -= predicted.gather(1, &targets.unsqueeze(1), false).sum(Kind::Double).double_value(&[]);
        match dense.get(row) {
            None => dense.push(predicted),
            Some(dense) => {
                divergence += (dense.exp() * (dense - &predicted)).sum(Kind::Double).double_value(&[]);
            }
        }
    }
    Ok(((loss / tokens as f64).exp(), divergence / tokens as f64))
}

/// Log-probabilities at the positions that count, and the tokens that stand there.
fn predictions(base: &Base, example: &Example) -> Result<(Tensor, Tensor)> {
    let row = |ids: &[i64]| Tensor::from_slice(ids).unsqueeze(0); // (1, T)
    let wide = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>();
    let (hidden, targets) = match example {
        Example::Decoder { ids, in_loss } => {
            let (input, next) = (wide(&ids[..ids.len() - 1]), wide(&ids[1..]));
            let hidden = base.hidden(&Input::Decoder { ids: &row(&input), mask: None }, &Pass::base())?;
            let counted: Vec<i64> = (0..).zip(&in_loss[1..]).filter(|(_, counts)| **counts).map(|(at, _)| at).collect();
            let counted = Tensor::from_slice(&counted);
            (hidden.index_select(1, &counted), Tensor::from_slice(&next).index_select(0, &counted))
        }
        Example::EncoderDecoder { encoder, labels } => {
            let Config::T5(config) = base.config() else { anyhow::bail!("rows of an encoder-decoder") };
            let labels = wide(labels);
            let shifted: Vec<i64> = std::iter::once(config.decoder_start_token_id.into())
                .chain(labels.iter().copied())
                .take(labels.len())
                .collect();
            let (ids, decoder_ids) = (row(&wide(encoder)), row(&shifted));
            let input = Input::EncoderDecoder { ids: &ids, mask: None, decoder_ids: &decoder_ids };
            (base.hidden(&input, &Pass::base())?, Tensor::from_slice(&labels))
        }
    };
    let logits = base.head(&hidden, &Pass::base()).squeeze_dim(0); // (n, V)
    Ok((logits.log_softmax(-1, Kind::Float), targets))
}
