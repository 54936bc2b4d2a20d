//! The dequantised weight is never saved for backward: measured, not believed.

use tailor_quant::{Backend, BlockSize, Code, Float, quantize};
use tailor_torch::{PeakMemory, QuantWeight, backward, quant_linear};
use tch::{Device, Kind, Tensor};

/// A square weight of 16 MiB in f32.
const SIDE: i64 = 2048;
const DENSE_BYTES: u64 = (SIDE * SIDE * 4) as u64;
const LAYERS: usize = 8;

fn weight(seed: i64) -> QuantWeight {
    tch::manual_seed(seed);
    let values =
        Vec::<f32>::try_from((Tensor::randn([SIDE * SIDE], (Kind::Float, Device::Cpu)) * 0.02).view([-1])).unwrap();
    let shape = [SIDE as usize; 2];
    let quantized = quantize(&values, &shape, Float::F32, Code::Nf4, BlockSize::DEFAULT, true, Backend::Cpu).unwrap();
    QuantWeight::new(quantized).unwrap()
}

/// Peak growth of a forward and backward pass through all layers.
fn peak(forward: impl Fn(usize, &Tensor) -> Tensor) -> u64 {
    let x = Tensor::ones([4, SIDE], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let run = || {
        let y = (0..LAYERS).fold(x.shallow_clone(), |x, layer| forward(layer, &x));
        backward(&[(&y.sum(Kind::Float), None)], false).unwrap();
    };
    run(); // the allocator and libtorch's threads settle
    let peak = PeakMemory::reset().unwrap();
    run();
    peak.growth_bytes().unwrap()
}

#[test]
fn dequantised_weights_are_not_kept_for_backward() {
    let weights: Vec<QuantWeight> = (0..LAYERS as i64).map(weight).collect();
    // Plain operators on a dequantised weight keep every one of them until backward.
    let kept = peak(|layer, x| x.linear(&weights[layer].dequantize(), None::<&Tensor>));
    let ours = peak(|layer, x| quant_linear(x, &weights[layer], None).unwrap());
    println!("kept {} MiB, ours {} MiB, one weight {} MiB", kept >> 20, ours >> 20, DENSE_BYTES >> 20);
    assert!(kept > (LAYERS as u64 - 2) * DENSE_BYTES, "the measurement sees kept weights: {kept}");
    assert!(ours < 2 * DENSE_BYTES, "8 layers grew the process by {ours} bytes; one weight has {DENSE_BYTES}");
}

#[test]
fn gradient_passes_through_the_4_bit_weight_as_through_the_dense_one() {
    let weight = weight(9);
    let x = Tensor::randn([3, 5, SIDE], (Kind::Float, Device::Cpu));
    let seed = Tensor::randn([3, 5, SIDE], (Kind::Float, Device::Cpu));
    let bias = Tensor::randn([SIDE], (Kind::Float, Device::Cpu));
    let gradients = |f: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
        let (x, bias) = (x.copy().set_requires_grad(true), bias.copy().set_requires_grad(true));
        let y = f(&x, &bias);
        backward(&[(&y, Some(&seed))], false).unwrap();
        (y.detach(), x.grad(), bias.grad())
    };
    let ours = gradients(&|x, bias| quant_linear(x, &weight, Some(bias)).unwrap());
    let dense = gradients(&|x, bias| x.linear(&weight.dequantize(), Some(bias)));
    for (ours, dense) in [(&ours.0, &dense.0), (&ours.1, &dense.1), (&ours.2, &dense.2)] {
        assert!(crate::relative_difference(ours, dense) < 1e-5);
    }
}
