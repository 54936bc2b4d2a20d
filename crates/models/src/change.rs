//! What an adapter does to one linear layer h = W·x + b.
//!
//! LoRA (arXiv 2106.09685 eq. 3) adds s·(B·A·x + β), β being the bias that PEFT's `lora_bias` gives B. DoRA (arXiv
//! 2402.09353 eq. 5) scales each output by g = m/‖W + s·B·A‖, the norm over the row of that output, the bias apart:
//! g·(W·x + s·B·A·x) + b. PEFT's `bias` puts another in b's place, its `modules_to_save` another weight in W's.
//! The sums are made in f32 and rounded to the type of the layer once.

use tailor_torch::Factors;
use tch::{Kind, Tensor};

use crate::Result;
use crate::linear::{Linear, Weight};
use crate::lora::Lora;

/// Values of W that are in f32 at once, B·A beside them.
const CHUNK: i64 = 1 << 24;

#[derive(Debug, Default)]
pub(crate) struct Change {
    pub lora: Option<Lora>,
    pub dora: Option<Dora>,
    /// A second pair that is added as the first is: what an initialisation takes away from the base (PiSSA).
    pub frozen: Option<Lora>,
    /// The bias of B [out], in f32.
    pub lora_bias: Option<Tensor>,
    /// In W's place [out, in].
    pub weight: Option<Tensor>,
    /// In b's place [out].
    pub bias: Option<Tensor>,
}

/// A magnitude for each output, and the length of the row of W + s·B·A that it is for.
///
/// The length is a constant here, as in the paper's §4.3: whoever trains makes it anew after each step.
#[derive(Debug)]
pub(crate) struct Dora {
    magnitude: Tensor, // [out] f32
    norm: Tensor,      // [out] f32
}

impl Dora {
    /// # Errors
    /// No memory.
    pub fn new(weight: &Weight, lora: &Lora, magnitude: Tensor) -> Result<Self> {
        let norm = tch::no_grad(|| row_norms(weight, lora))?;
        Ok(Self { magnitude, norm })
    }

    pub fn magnitude(&self) -> &Tensor {
        &self.magnitude
    }

    pub fn norm(&self) -> &Tensor {
        &self.norm
    }

    /// g, [out] in f32.
    fn gain(&self) -> Tensor {
        &self.magnitude / &self.norm
    }

    pub fn is_finite(&self) -> bool {
        self.gain().isfinite().all().int64_value(&[]) != 0
    }

    /// Whether the magnitudes are the lengths themselves, but for rounding: what an untrained adapter has.
    fn is_unit(&self) -> bool {
        (self.gain() - 1.0).abs().max().double_value(&[]) < 1e-5
    }
}

/// ‖W + s·B·A‖ of each row → [out] f32.
fn row_norms(weight: &Weight, lora: &Lora) -> Result<Tensor> {
    let weight = match weight {
        Weight::Dense(weight) => weight.shallow_clone(),
        Weight::FourBit(weight) => weight.dequantize().f_to_device(lora.b.device())?,
        Weight::OnDevice(weight) => weight.dequantize()?,
    };
    let (out, input) = weight.size2()?;
    let rows = (CHUNK / input.max(1)).max(1);
    let norms = (0..out).step_by(rows as usize).map(|at| {
        let rows = rows.min(out - at);
        let update = lora.b.f_narrow(0, at, rows)?.f_matmul(&lora.a)? * lora.scale; // [rows, in]
        let sum = weight.f_narrow(0, at, rows)?.f_to_kind(Kind::Float)? + update;
        Ok(sum.f_norm_scalaropt_dim(2, [1i64].as_slice(), false)?)
    });
    Ok(Tensor::f_cat(&norms.collect::<Result<Vec<_>>>()?, 0)?)
}

impl Change {
    /// The pair, where it is all there is and takes the layer's own input.
    pub fn plain_lora(&self, training: bool) -> Option<Factors<'_>> {
        let others = self.dora.is_some()
            || self.frozen.is_some()
            || self.lora_bias.is_some()
            || self.weight.is_some()
            || self.bias.is_some();
        // Factors that serving has rounded to bf16 take the other way.
        let fits = |lora: &&Lora| !others && (!training || lora.dropout == 0.0) && lora.a.kind() == Kind::Float;
        let lora = self.lora.as_ref().filter(fits)?;
        Some(Factors { a: &lora.a, b: &lora.b, scale: lora.scale })
    }

    /// # Shapes
    /// `x` [B, T, in] → [B, T, out]
    pub fn forward(&self, linear: &Linear, x: &Tensor, training: bool) -> Tensor {
        match (&self.weight, &self.lora) {
            (Some(weight), _) => self.sum(linear, &x.linear(weight, linear.bias.as_ref()), x, training),
            (None, Some(lora)) if self.is_plain() => lora.add_on(|| linear.plain(x), x, training),
            (None, _) => self.sum(linear, &linear.plain(x), x, training),
        }
    }

    /// The same where the base's layer has been run: `y` [B, T, out] is its h.
    pub fn add_to(&self, linear: &Linear, y: &Tensor, x: &Tensor, training: bool) -> Tensor {
        if self.weight.is_some() { self.forward(linear, x, training) } else { self.sum(linear, y, x, training) }
    }

    /// h from `y`, which is W·x + b with the W that counts and the base's b.
    fn sum(&self, linear: &Linear, y: &Tensor, x: &Tensor, training: bool) -> Tensor {
        let add = |y: &Tensor| {
            let sum = self.lora.as_ref().map(|lora| lora.add_to(y, x, training));
            match &self.frozen {
                Some(frozen) => Some(frozen.add_to(sum.as_ref().unwrap_or(y), x, training)),
                None => sum,
            }
        };
        if self.dora.is_none() && self.lora_bias.is_none() && self.bias.is_none() {
            return add(y).unwrap_or_else(|| y.shallow_clone());
        }
        let wide = y.to_kind(Kind::Float);
        let sum = add(&wide).unwrap_or(wide);
        let gain = self.dora.as_ref().map(Dora::gain);
        let shift = self.shift(linear, gain.as_ref());
        let sum = gain.map_or_else(|| sum.shallow_clone(), |gain| &sum * gain);
        shift.map_or_else(|| sum.shallow_clone(), |shift| &sum + shift).to_kind(y.kind())
    }

    /// What is still to be added [out] once y, with the base's b in it, has gone through the gain.
    fn shift(&self, linear: &Linear, gain: Option<&Tensor>) -> Option<Tensor> {
        let wide = |bias: &Tensor| bias.to_kind(Kind::Float);
        let gained = |base: &Tensor| gain.map_or_else(|| base.shallow_clone(), |gain| base * gain);
        let bias = match (self.bias.as_ref().map(wide), linear.bias.as_ref().map(wide)) {
            (None, None) => None,
            (None, Some(base)) => gain.is_some().then(|| &base - gained(&base)),
            (Some(own), None) => Some(own),
            (Some(own), Some(base)) => Some(own - gained(&base)),
        };
        let lora_bias = self.lora_bias.as_ref().zip(self.lora.as_ref()).map(|(bias, lora)| bias * lora.scale);
        match (bias, lora_bias) {
            (Some(bias), Some(lora_bias)) => Some(bias + lora_bias),
            (bias, lora_bias) => bias.or(lora_bias),
        }
    }

    /// Whether a gradient of its own hangs on the value of W·x: DoRA's magnitude scales it, all others add to it.
    pub fn looks_at_values(&self) -> bool {
        self.dora.is_some()
    }

    /// Whether it is one pair of factors and nothing else.
    pub fn is_plain(&self) -> bool {
        let Self { lora: _, dora, frozen, lora_bias, weight, bias } = self;
        dora.is_none() && frozen.is_none() && lora_bias.is_none() && weight.is_none() && bias.is_none()
    }

    /// Whether h stays as it is, as far as this can be told without an x.
    pub fn is_none(&self) -> bool {
        let zero = |tensor: &Tensor| tensor.count_nonzero(None).int64_value(&[]) == 0;
        let lora = self.lora.as_ref().is_none_or(|lora| lora.scale == 0.0 || zero(&lora.a) || zero(&lora.b));
        let bias = self.lora_bias.as_ref().is_none_or(zero);
        let dora = self.dora.as_ref().is_none_or(Dora::is_unit);
        lora && bias && dora && self.frozen.is_none() && self.weight.is_none() && self.bias.is_none()
    }

    pub fn parameters(&self, path: &str) -> Vec<(String, Tensor)> {
        let lora = self.lora.as_ref();
        [
            ("lora_A.weight", lora.map(|lora| &lora.a)),
            ("lora_B.weight", lora.map(|lora| &lora.b)),
            ("lora_B.bias", self.lora_bias.as_ref()),
            ("lora_magnitude_vector", self.dora.as_ref().map(|dora| &dora.magnitude)),
            ("weight", self.weight.as_ref()),
            ("bias", self.bias.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, tensor)| Some((format!("{path}.{name}"), tensor?.shallow_clone())))
        .collect()
    }
}
