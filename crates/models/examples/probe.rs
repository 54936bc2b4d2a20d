//! What a folder's model computes with the inputs of a file: for `tests/parity/check_models.py`, which compares.
//!
//! `cargo run -p tailor-models --example probe -- FOLDER INPUTS.safetensors OUTPUTS.safetensors f32|bf16 NEW_TOKENS`
//!
//! Inputs: `ids`, `mask` [B, S], for an encoder-decoder `decoder_ids` [B, T]; perhaps `lora.value.PATH.lora_A.weight` [R, In]
//! and `…lora_B.weight` [Out, R] for every linear layer, with `lora.scale` [1]. For a decoder perhaps `packed.ids` and
//! `packed.mask` [1, P]: the same texts in one sequence. Outputs: `logits` [B, T, V] f32, `greedy`
//! [B, NEW_TOKENS] i64 padded with −1, and with an adapter `lora.logits`, `lora.loss` [1] and `lora.gradient.…`.

use std::collections::HashMap;
use std::path::PathBuf;

use tailor_domain::Family;
use tailor_models::{Base, Compute, Greedy, Input, LoadOptions, Lora, LoraSet, Pass};
use tch::{Device, Kind, Tensor};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, inputs, outputs, dtype, new_tokens] = arguments.as_slice() else {
        return Err("usage: probe FOLDER INPUTS OUTPUTS f32|bf16 NEW_TOKENS".into());
    };
    let compute = match dtype.as_str() {
        "f32" => Compute::F32,
        "bf16" => Compute::Bf16,
        other => return Err(format!("{other}: f32 or bf16 is needed").into()),
    };
    let base = Base::load(&PathBuf::from(folder), &LoadOptions { compute, device: Device::Cpu })?;
    let given = Given(Tensor::read_safetensors(inputs)?.into_iter().collect());
    let mut out = computed(&base, &given, "")?;
    if let Some(packed) = given.packed() {
        out.extend(computed(&base, &packed, "packed.")?);
    }
    let greedy = Greedy { max_new: new_tokens.parse()?, eos: base.config().eos_token_ids().to_vec() };
    if greedy.max_new > 0 {
        out.push(("greedy".to_owned(), greedy_answers(&base, &given, &greedy)?));
    }
    let named: Vec<(&str, Tensor)> = out.iter().map(|(name, tensor)| (name.as_str(), tensor.contiguous())).collect();
    Ok(Tensor::write_safetensors(&named, outputs)?)
}

/// Logits, and with an adapter loss and gradients.
fn computed(base: &Base, given: &Given, prefix: &str) -> Result<Vec<(String, Tensor)>, Failure> {
    let logits = tch::no_grad(|| given.logits(base, &Pass::base()))?;
    let mut out = vec![(format!("{prefix}logits"), logits)];
    if let Some(scale) = given.0.get("lora.scale") {
        let set = given.adapter(base, scale.double_value(&[0]))?;
        let logits = given.logits(base, &Pass::training(&set))?;
        let loss = given.loss(base, &logits)?;
        tailor_torch::backward(&[(&loss, None)], false)?;
        for (key, parameter) in set.parameters() {
            out.push((format!("{prefix}lora.gradient.{key}"), parameter.grad().to_kind(Kind::Float)));
        }
        out.push((format!("{prefix}lora.logits"), logits.detach()));
        out.push((format!("{prefix}lora.loss"), loss.detach().view([1])));
    }
    Ok(out)
}

struct Given(HashMap<String, Tensor>);

impl Given {
    /// The same with the packed texts in place of the rows.
    fn packed(&self) -> Option<Self> {
        let mut packed: HashMap<_, _> = self.0.iter().map(|(name, x)| (name.clone(), x.shallow_clone())).collect();
        let (ids, mask) = (packed.remove("packed.ids")?, packed.remove("packed.mask")?);
        packed.extend([("ids".to_owned(), ids), ("mask".to_owned(), mask)]);
        Some(Self(packed))
    }

    fn get(&self, name: &str) -> Result<&Tensor, Failure> {
        self.0.get(name).ok_or_else(|| format!("{name} is not among the inputs").into())
    }

    fn logits(&self, base: &Base, pass: &Pass<'_>) -> Result<Tensor, Failure> {
        let (ids, mask) = (self.get("ids")?, Some(self.get("mask")?));
        let input = match base.family() {
            Family::Decoder => Input::Decoder { ids, mask },
            Family::EncoderDecoder => Input::EncoderDecoder { ids, mask, decoder_ids: self.get("decoder_ids")? },
        };
        Ok(base.head(&base.hidden(&input, pass)?, pass))
    }

    fn adapter(&self, base: &Base, scale: f64) -> Result<LoraSet, Failure> {
        let mut set = LoraSet::empty(base);
        for linear in base.linears() {
            let value = |factor: &str| -> Result<Tensor, Failure> {
                let name = format!("lora.value.{}.lora_{factor}.weight", linear.path);
                Ok(self.get(&name)?.copy().set_requires_grad(true))
            };
            set.insert(&linear.path, Lora { a: value("A")?, b: value("B")?, scale, dropout: 0.0 })?;
        }
        Ok(set)
    }

    /// Mean cross-entropy of the next token over tokens whose predecessor is of the same text.
    fn loss(&self, base: &Base, logits: &Tensor) -> Result<Tensor, Failure> {
        let (targets, text) = match base.family() {
            Family::Decoder => (self.get("ids")?, self.get("mask")?.shallow_clone()),
            Family::EncoderDecoder => {
                let ids = self.get("decoder_ids")?;
                (ids, ids.ones_like())
            }
        };
        let last = targets.size()[1] - 1;
        let (texts, texts_before) = (text.narrow(1, 1, last), text.narrow(1, 0, last));
        let counted = texts.eq_tensor(&texts_before).logical_and(&texts.ne(0));
        let targets = targets.narrow(1, 1, last).masked_fill(&counted.logical_not(), -100);
        let flat = logits.narrow(1, 0, last).reshape([-1, logits.size()[2]]);
        Ok(flat.cross_entropy_loss(&targets.reshape([-1]), None::<&Tensor>, tch::Reduction::Mean, -100, 0.0))
    }
}

/// All prompts in one batch, which pads and drops rows; the peer takes one prompt at a time.
fn greedy_answers(base: &Base, given: &Given, greedy: &Greedy) -> Result<Tensor, Failure> {
    let (ids, mask) = (given.get("ids")?, given.get("mask")?.to_kind(Kind::Bool));
    let rows = ids.size()[0];
    let prompts = (0..rows).map(|row| {
        let tokens = Vec::<i64>::try_from(ids.get(row).masked_select(&mask.get(row)))?;
        Ok(tokens.into_iter().map(|id| id as u32).collect())
    });
    let prompts = prompts.collect::<Result<Vec<Vec<u32>>, Failure>>()?;
    let mut padded = Vec::new();
    for answer in base.generate_greedy(&prompts, greedy, None)? {
        let padding = greedy.max_new - answer.len();
        padded.extend(answer.into_iter().map(i64::from).chain(std::iter::repeat_n(-1, padding)));
    }
    Ok(Tensor::from_slice(&padded).view([rows, greedy.max_new as i64]))
}
