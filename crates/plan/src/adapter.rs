//! Which linear layers get a pair of matrices, and how many values that makes: PEFT's rules, by way of `tailor-peft`.

use tailor_domain::Recipe;
use tailor_peft::AdapterConfig;

use crate::Result;
use crate::shape::Shape;

/// The rank at each linear layer, 0 where it stays as it is, in the order of [`Shape::linears`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    ranks: Vec<u64>,
    /// On the output layer.
    head_rank: u64,
    values: u64,
    dropout: bool,
    /// Virtual tokens in LoRA's place.
    virtual_tokens: u64,
}

const HEAD: &str = "lm_head";

impl Adapter {
    /// # Errors
    /// A name, pattern or layer number that chooses no linear layer of the base.
    pub fn of(shape: &Shape, recipe: &Recipe) -> Result<Self> {
        let spec = &recipe.lora;
        if recipe.prompt_tuning.is_on() {
            let virtual_tokens = u64::from(recipe.prompt_tuning.virtual_tokens);
            let values = virtual_tokens * shape.hidden;
            return Ok(Self { ranks: Vec::new(), head_rank: 0, values, dropout: false, virtual_tokens });
        }
        let paths: Vec<&str> = shape.linears.iter().map(|linear| linear.path.as_str()).chain([HEAD]).collect();
        let config = AdapterConfig::of_job(shape.family.task_type(), spec, &paths)?;
        let rank = |path: &str| if config.targets(path) { u64::from(config.rank_for(path)) } else { 0 };
        let ranks: Vec<u64> = shape.linears.iter().map(|linear| rank(&linear.path)).collect();
        let head_rank = rank(HEAD);
        let extra = u64::from(spec.dora) + u64::from(spec.bias);
        let pair = |rank: u64, input: u64, out: u64| match rank {
            0 => 0,
            rank => rank * (input + out) + extra * out,
        };
        let of_layers = shape.linears.iter().zip(&ranks).map(|(linear, rank)| pair(*rank, linear.input, linear.out));
        let values = of_layers.sum::<u64>() + pair(head_rank, shape.hidden, shape.vocab);
        Ok(Self { ranks, head_rank, values, dropout: spec.dropout > 0.0, virtual_tokens: 0 })
    }

    /// Trainable values.
    pub fn values(&self) -> u64 {
        self.values
    }

    pub fn rank(&self, linear: usize) -> u64 {
        self.ranks.get(linear).copied().unwrap_or(0)
    }

    pub fn head_rank(&self) -> u64 {
        self.head_rank
    }

    /// 0 where LoRA is trained.
    pub fn virtual_tokens(&self) -> u64 {
        self.virtual_tokens
    }

    pub fn dropout(&self) -> bool {
        self.dropout
    }
}
