//! How far what was written is from base and adapter, value by value.
//!
//! With W a value of the base, M the merged one in f32 and R the one written, the update is M − W and the error R − M.
//! Rounding to nearest can eat an update that is smaller than half a step of W's type: then R = W. So beside the error's
//! size stands the share of the update that survives, ⟨R − W, M − W⟩ / ‖M − W‖²: 1 where nothing is lost, 0 where R is W.

/// Sums over one tensor or several.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Difference {
    pub values: u64,
    /// Largest |R − M|.
    pub largest_error: f64,
    merged_squares: f64,
    update_squares: f64,
    error_squares: f64,
    kept: f64,
}

impl Difference {
    pub(crate) fn of(base: &[f32], merged: &[f32], written: &[f32]) -> Self {
        let mut all = Self { values: merged.len() as u64, ..Self::default() };
        for ((base, merged), written) in base.iter().zip(merged).zip(written) {
            let (base, merged, written) = (f64::from(*base), f64::from(*merged), f64::from(*written));
            let (update, error) = (merged - base, written - merged);
            all.merged_squares += merged * merged;
            all.update_squares += update * update;
            all.error_squares += error * error;
            all.kept += (written - base) * update;
            all.largest_error = all.largest_error.max(error.abs());
        }
        all
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.values += other.values;
        self.largest_error = self.largest_error.max(other.largest_error);
        self.merged_squares += other.merged_squares;
        self.update_squares += other.update_squares;
        self.error_squares += other.error_squares;
        self.kept += other.kept;
    }

    pub fn is_exact(&self) -> bool {
        self.error_squares == 0.0
    }

    pub fn has_update(&self) -> bool {
        self.update_squares > 0.0
    }

    /// Root of the mean square of M − W.
    pub fn update_rms(&self) -> f64 {
        (self.update_squares / self.values.max(1) as f64).sqrt()
    }

    /// Root of the mean square of R − M.
    pub fn error_rms(&self) -> f64 {
        (self.error_squares / self.values.max(1) as f64).sqrt()
    }

    /// The error's size over the update's; 0 without an update.
    pub fn error_of_update(&self) -> f64 {
        ratio(self.error_squares, self.update_squares).sqrt()
    }

    /// The error's size over the values'.
    pub fn error_of_values(&self) -> f64 {
        ratio(self.error_squares, self.merged_squares).sqrt()
    }

    /// The share of the update that is in what was written; 1 without an update.
    pub fn survives(&self) -> f64 {
        if self.has_update() { self.kept / self.update_squares } else { 1.0 }
    }
}

fn ratio(of: f64, over: f64) -> f64 {
    if over > 0.0 { of / over } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_below_half_a_step_does_not_survive_and_one_above_it_does() {
        let (base, lost, kept) = ([1.0f32; 4], [1.0f32 + 1e-4; 4], [1.0f32 + 0.0078125; 4]);
        let bf16 = |values: &[f32; 4]| values.map(|value| tailor_quant::Float::Bf16.round(value));
        let eaten = Difference::of(&base, &lost, &bf16(&lost));
        assert_eq!(eaten.survives(), 0.0, "{eaten:?}");
        assert!((eaten.error_of_update() - 1.0).abs() < 1e-9, "all of it is error: {eaten:?}");
        let whole = Difference::of(&base, &kept, &bf16(&kept));
        assert_eq!((whole.survives(), whole.is_exact()), (1.0, true), "{whole:?}");
        let mut both = eaten;
        both.add(&whole);
        assert!(both.survives() > 0.999 && both.values == 8 && both.largest_error == eaten.largest_error, "{both:?}");
    }

    #[test]
    fn without_an_update_the_error_is_told_against_the_values() {
        let rounded = Difference::of(&[3.0; 2], &[3.0; 2], &[3.03; 2]);
        assert!(!rounded.has_update() && rounded.survives() == 1.0 && rounded.error_of_update() == 0.0);
        assert!((rounded.error_of_values() - 0.01).abs() < 1e-6, "{rounded:?}");
    }
}
