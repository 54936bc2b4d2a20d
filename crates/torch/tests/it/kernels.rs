//! The kernels' own text against tailor-quant (to the bit) and plain operators: on the host under the emulation of CUDA, or
//! on the GPU that `TAILOR_TEST_DEVICE` names; and compiled by NVRTC for the cards that are promised.

mod compiled;
mod dequantize;
mod layers;
mod optimizer;
mod step;

use tailor_torch::kernels::test_device;
use tch::{Device, Kind, Tensor};

/// Where kernels are tried.
fn device() -> Device {
    test_device().expect("a C++ compiler, or the GPU that TAILOR_TEST_DEVICE names")
}

/// What f32 sums in another order, and libm's functions, may differ by; in bf16 one rounding more or less.
fn near(ours: &Tensor, plain: &Tensor, kind: Kind) {
    assert_eq!((ours.size(), ours.kind()), (plain.size(), plain.kind()));
    let wide = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
    let (ours, plain) = (wide(ours), wide(plain));
    let (relative, absolute) = if kind == Kind::Float { (2e-5, 2e-6) } else { (1.6e-2, 8e-3) };
    assert!(ours.isfinite().all().int64_value(&[]) == 1, "{ours:?}");
    let scale = plain.abs().max().double_value(&[]);
    let off = (&ours - &plain).abs() - plain.abs() * relative;
    let off = off.max().double_value(&[]);
    assert!(off <= absolute * scale.max(1e-3), "off by {off} where the largest is {scale}");
}
