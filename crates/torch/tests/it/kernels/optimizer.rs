//! AdamW in one launch against its formula in f64, with moments in f32 and in 8 bits.

use tailor_torch::device::{AdamFactors, AdamStep, Moment8, adamw, adamw8};
use tch::{Kind, Tensor};

use super::{device, near};

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

fn zeros(count: i64) -> Tensor {
    Tensor::zeros([count], (Kind::Float, device()))
}

/// The formula on whole tensors in f64: values, moments.
fn stepped(state: [&Tensor; 3], gradient: &Tensor, [rate, correction, decay]: [&Tensor; 3]) -> [Tensor; 3] {
    let [w, m, v] = state.map(|tensor| tensor.to_kind(Kind::Double));
    let g = gradient.to_kind(Kind::Double);
    let m = m * BETAS.0 + &g * (1.0 - BETAS.0);
    let v = v * BETAS.1 + g.square() * (1.0 - BETAS.1);
    let root = (&v / correction).sqrt() + EPSILON;
    [(w * decay - &m / root * rate).to_kind(Kind::Float), m.to_kind(Kind::Float), v.to_kind(Kind::Float)]
}

#[test]
fn a_step_in_one_launch_equals_the_formula() {
    let count = 1000;
    let values = Tensor::randn([count], (Kind::Float, device()));
    let (first, second) = (zeros(count), zeros(count));
    let all = |number: f64| Tensor::full([count], number, (Kind::Double, device()));
    let mut expected = [values.copy(), zeros(count), zeros(count)];
    for step in 1..=3 {
        let gradient = Tensor::randn([count], (Kind::Float, device()));
        let (c1, c2) = (1.0 - BETAS.0.powi(step), 1.0 - BETAS.1.powi(step));
        let [w, m, v] = &expected;
        expected = stepped([w, m, v], &(&gradient * 0.5), [&all(1e-2 / c1), &all(c2), &all(0.999)]);
        let factors = AdamFactors::Same { rate: 1e-2 / c1, correction: c2, decay: 0.999 };
        let launch = AdamStep {
            values: &values,
            gradient: &gradient,
            gradient_scale: 0.5,
            betas: BETAS,
            epsilon: EPSILON,
            factors,
        };
        adamw(&launch, &first, &second).expect("runs");
    }
    for (ours, plain) in [&values, &first, &second].into_iter().zip(&expected) {
        near(ours, plain, Kind::Float);
    }
}

#[test]
fn each_value_may_have_factors_of_its_own() {
    let count = 300;
    let values = Tensor::randn([count], (Kind::Float, device()));
    let gradient = Tensor::randn([count], (Kind::Float, device()));
    let [rates, corrections, decays] =
        [0.1, 1.0, 1.0].map(|most| Tensor::rand([count], (Kind::Float, device())) * most + 1e-3);
    let factors = [&rates, &corrections, &decays];
    let expected = stepped([&values, &zeros(count), &zeros(count)], &gradient, factors);
    let launch = AdamStep {
        values: &values.copy(),
        gradient: &gradient,
        gradient_scale: 1.0,
        betas: BETAS,
        epsilon: EPSILON,
        factors: AdamFactors::Each { rates: &rates, corrections: &corrections, decays: &decays },
    };
    adamw(&launch, &zeros(count), &zeros(count)).expect("runs");
    near(launch.values, &expected[0], Kind::Float);
    let short = AdamStep { gradient: &zeros(count - 1), ..launch };
    let error = adamw(&short, &zeros(count), &zeros(count)).expect_err("refused").to_string();
    assert!(error.contains("gradient is Float of 299 values; Float of 300 is needed"), "{error}");
}

/// A moment in 8 bits with any ascending maps: the kernel takes what it is given.
struct Eight {
    codes: Tensor,
    scales: Tensor,
    map: Tensor,
    middles: Tensor,
}

impl Eight {
    fn new(count: i64, signed: bool) -> Self {
        let low = if signed { -1.0 } else { 0.0 };
        let map = Tensor::linspace(low, 1.0, 256, (Kind::Float, device()));
        let middles = (map.narrow(0, 0, 255) + map.narrow(0, 1, 255)) / 2.0;
        let scales = zeros((count + 255) / 256);
        Self { codes: Tensor::zeros([count], (Kind::Uint8, device())), scales, map, middles }
    }

    fn borrowed(&self) -> Moment8<'_> {
        Moment8 { codes: &self.codes, scales: &self.scales, map: &self.map, middles: &self.middles }
    }

    fn opened(&self) -> Tensor {
        let spread = self.scales.repeat_interleave_self_int(256, 0, None).narrow(0, 0, self.codes.size()[0]);
        self.map.index_select(0, &self.codes.to_kind(Kind::Int64)) * spread
    }

    /// The codes and scales that plain operators give these values.
    fn closed(&self, values: &Tensor) -> (Tensor, Tensor) {
        let (count, blocks) = (values.size()[0], self.scales.size()[0]);
        let padded = values.constant_pad_nd([0, blocks * 256 - count]).view([blocks, 256]);
        let scales = padded.abs().amax([1i64].as_slice(), true);
        let divisor = scales.masked_fill(&scales.eq(0.0), 1.0);
        let codes = (padded / divisor).bucketize(&self.middles, false, false).to_kind(Kind::Uint8);
        (codes.view([-1]).narrow(0, 0, count), scales.view([-1]))
    }
}

#[test]
fn eight_bit_moments_close_to_the_codes_that_plain_operators_give() {
    let count = 2 * 256 + 77;
    let values = Tensor::randn([count], (Kind::Float, device()));
    let (first, second) = (Eight::new(count, true), Eight::new(count, false));
    let all = |number: f64| Tensor::full([count], number, (Kind::Double, device()));
    for _ in 0..3 {
        let gradient = Tensor::randn([count], (Kind::Float, device()));
        // One block of zeros: it has no scale.
        let _ = gradient.narrow(0, 0, 256).zero_();
        let before = [values.copy(), first.opened(), second.opened()];
        let [w, m, v] = &before;
        let [w, m, v] = stepped([w, m, v], &gradient, [&all(1e-2), &all(0.5), &all(0.99)]);
        let launch = AdamStep {
            values: &values,
            gradient: &gradient,
            gradient_scale: 1.0,
            betas: BETAS,
            epsilon: EPSILON,
            factors: AdamFactors::Same { rate: 1e-2, correction: 0.5, decay: 0.99 },
        };
        adamw8(&launch, &first.borrowed(), &second.borrowed()).expect("runs");
        near(&values, &w, Kind::Float);
        for (moment, wanted) in [(&first, m), (&second, v)] {
            let (codes, scales) = moment.closed(&wanted);
            near(&moment.scales, &scales, Kind::Float);
            // Sums in f32 and f64 may fall on both sides of a middle.
            let off = (moment.codes.to_kind(Kind::Int64) - codes.to_kind(Kind::Int64)).abs();
            assert!(off.max().int64_value(&[]) <= 1, "codes are those or their neighbours");
            assert!(off.sum(Kind::Int64).int64_value(&[]) <= count / 100, "and nearly all are those");
        }
    }
}
