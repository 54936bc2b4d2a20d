//! Where an axis has its numbers, and how they are written.

/// Ends of an axis and the places of its numbers, at steps of 1, 2 or 5 times a power of ten.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    pub step: f64,
    pub percent: bool,
}

impl Axis {
    /// Covers `low` to `high` with at most `most` numbers; `whole` leaves no step below 1.
    pub fn over(low: f64, high: f64, most: usize, whole: bool) -> Self {
        let (low, high) = if high > low { (low, high) } else { (low, low + low.abs().max(1.0) * 0.1) };
        let rough = (high - low) / most.saturating_sub(1).max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let nice = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = nice.into_iter().find(|step| *step >= rough * (1.0 - 1e-9)).unwrap_or(power * 10.0);
        Self { low, high, step: if whole { step.max(1.0) } else { step }, percent: false }
    }

    /// The same, with the ends moved out to a number each.
    pub fn rounded(low: f64, high: f64, most: usize) -> Self {
        let axis = Self::over(low, high, most, false);
        // A value that rounding put a hair beside a number is that number.
        let steps = |value: f64, hair: f64| value / axis.step + hair;
        let (low, high) = (steps(axis.low, 1e-6).floor(), steps(axis.high, -1e-6).ceil());
        Self { low: low * axis.step, high: high * axis.step, ..axis }
    }

    /// Where `value` lies between the ends, from 0 to 1.
    pub fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Values and what is written beside them.
    pub fn numbers(&self) -> Vec<(f64, String)> {
        let first = (self.low / self.step - 1e-9).ceil() as i64;
        let last = (self.high / self.step + 1e-9).floor() as i64;
        (first..=last).map(|at| at as f64 * self.step).map(|value| (value, self.written(value))).collect()
    }

    fn written(&self, value: f64) -> String {
        if self.percent {
            return format!("{:.0} %", value * 100.0);
        }
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        if decimals > 5 {
            return if value == 0.0 { "0".into() } else { format!("{value:.0e}") };
        }
        grouped(&format!("{value:.decimals$}"))
    }
}

/// `12,000` for `12000`.
fn grouped(number: &str) -> String {
    let (whole, rest) = number.find('.').map_or((number, ""), |dot| number.split_at(dot));
    let digits = whole.trim_start_matches('-');
    let mut out = String::from(&whole[..whole.len() - digits.len()]);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(axis: &Axis) -> Vec<String> {
        axis.numbers().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn numbers_are_round_and_written_no_longer_than_they_must() {
        assert_eq!(written(&Axis::over(0.0, 2394.0, 7, true)), ["0", "500", "1,000", "1,500", "2,000"]);
        assert_eq!(written(&Axis::over(0.0, 3.0, 9, true)), ["0", "1", "2", "3"]);
        assert_eq!(written(&Axis::rounded(0.03, 3.1, 6)), ["0", "1", "2", "3", "4"]);
        assert_eq!(written(&Axis::rounded(0.0, 0.002, 3)), ["0.000", "0.001", "0.002"]);
        assert_eq!(written(&Axis::rounded(0.0, 2e-7, 3)), ["0", "1e-7", "2e-7"]);
        assert_eq!(written(&Axis { percent: true, ..Axis::rounded(0.0, 1.0, 6) })[5], "100 %");
        assert_eq!(grouped("-1234567.50"), "-1,234,567.50");
    }

    #[test]
    fn an_axis_without_extent_still_has_two_ends() {
        for value in [0.0, 5.0, -3.0, 1e-12] {
            let axis = Axis::rounded(value, value, 5);
            assert!(axis.high > axis.low && axis.numbers().len() >= 2, "{axis:?}");
            assert!((0.0..=1.0).contains(&axis.share(value)));
        }
    }
}
