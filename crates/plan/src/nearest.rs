//! If a job does not fit: the nearest settings that do.
//!
//! First every setting that suffices by itself, the mildest value of it; if none does, changes one on top of the other in
//! the order of what they cost: passes of fewer rows (the same gradient), layers that run again but for their products (the
//! same gradient, a little more time), layers that run again (more time), moments in 8 bits, bf16, shorter rows (longer ones
//! are left out), a lower rank. On a GPU what layers and moments keep may wait in the host's memory.

use tailor_domain::Recipe;

use crate::Result;
use crate::device::Device;
use crate::plan::{Question, cheaper, check_device, needs};
use crate::settings::Compute;

/// Settings to change together.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Name and new value, as in a job file.
    pub settings: Vec<(String, String)>,
    /// What the job takes then.
    pub bytes: u64,
}

impl Change {
    /// `train.checkpointing to layers and …`
    pub fn words(&self) -> String {
        let each = self.settings.iter().map(|(field, value)| format!("{field} to {value}"));
        each.collect::<Vec<_>>().join(" and ")
    }
}

/// Empty where nothing suffices.
pub(crate) fn nearest(question: &Question<'_>, device: &Device) -> Result<Vec<Change>> {
    let compute = Compute::of(question.recipe.train.precision, question.dtype)?;
    let mut single: Vec<Change> = Vec::new();
    for (field, value, recipe) in cheaper(question.recipe, compute, device.kind) {
        if single.iter().any(|change| change.settings[0].0 == field) {
            continue; // a milder value of it suffices
        }
        if let Some(bytes) = fits(question, &recipe, device)? {
            single.push(Change { settings: vec![(field.to_owned(), value)], bytes });
        }
    }
    if !single.is_empty() {
        return Ok(single);
    }
    let mut recipe = question.recipe.clone();
    let mut settings: Vec<(String, String)> = Vec::new();
    loop {
        let compute = Compute::of(recipe.train.precision, question.dtype)?;
        let Some((field, value, changed)) = cheaper(&recipe, compute, device.kind).into_iter().next() else {
            return Ok(Vec::new());
        };
        settings.retain(|(known, _)| known != field);
        settings.push((field.to_owned(), value));
        recipe = changed;
        if let Some(bytes) = fits(question, &recipe, device)? {
            return Ok(vec![Change { settings, bytes }]);
        }
    }
}

/// What the job takes with this recipe, where the device can run it.
fn fits(question: &Question<'_>, recipe: &Recipe, device: &Device) -> Result<Option<u64>> {
    let bytes = needs(&Question { recipe, ..*question }, device)?.0.total();
    let fits = bytes <= device.memory_bytes && check_device(recipe, device).is_ok();
    Ok(fits.then_some(bytes))
}
