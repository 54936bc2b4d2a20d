//! The shim's functions against plain operators, and its errors.

mod c10d;
mod gpu;
mod kernels;
mod layers;
mod pool;
mod tape;

use tailor_quant::{Backend, BlockSize, Code, Float, quantize};
use tailor_torch::{QuantWeight, backward, lora, quant_linear, rng_state, set_bf16_products, set_rng_state};
use tch::{Device, Kind, Tensor};

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn leaf(tensor: &Tensor) -> Tensor {
    tensor.copy().set_requires_grad(true)
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && (a - b).abs().max().double_value(&[]) <= 1e-5 * b.abs().max().double_value(&[])
}

fn weight(out: usize, input: usize, dtype: Float) -> QuantWeight {
    let values: Vec<f32> = (0..out * input).map(|i| dtype.round(((i * 37 % 101) as f32 - 50.0) / 300.0)).collect();
    let weight = quantize(&values, &[out, input], dtype, Code::Nf4, BlockSize::DEFAULT, true, Backend::Cpu);
    QuantWeight::new(weight.unwrap()).unwrap()
}

#[test]
fn quant_linear_equals_linear_over_the_dequantised_weight() {
    for (out, input) in [(64, 64), (48, 40), (7, 33), (1, 2)] {
        for dtype in [Float::F32, Float::Bf16, Float::F16] {
            let weight = weight(out, input, dtype);
            let x = random(&[2, 3, input as i64]);
            let ours = quant_linear(&x, &weight, None).unwrap();
            assert!(close(&ours, &x.linear(&weight.dequantize(), None::<&Tensor>)), "{out}×{input} {dtype:?}");
        }
    }
}

#[test]
fn bf16_input_gives_bf16_whatever_the_products_are_made_in() {
    let weight = weight(64, 128, Float::Bf16);
    let x = random(&[4, 128]).to_kind(Kind::BFloat16).set_requires_grad(true);
    let dense = weight.dequantize();
    let exact = x.to_kind(Kind::Float).linear(&dense, None::<&Tensor>);
    for products in [true, false] {
        set_bf16_products(products);
        let y = quant_linear(&x, &weight, None).unwrap();
        assert_eq!(y.kind(), Kind::BFloat16);
        let expected = match products {
            true => x.linear(&dense.to_kind(Kind::BFloat16), None::<&Tensor>),
            false => exact.to_kind(Kind::BFloat16),
        };
        assert_eq!((&y - expected).abs().max().double_value(&[]), 0.0, "{products}");
        backward(&[(&y.sum(Kind::Float), None)], false).unwrap();
        assert_eq!(x.grad().kind(), Kind::BFloat16);
    }
}

#[test]
fn lora_equals_plain_operators_in_value_and_every_gradient() {
    let [y, x, a, b] = [random(&[2, 3, 10]), random(&[2, 3, 8]), random(&[4, 8]), random(&[10, 4])];
    let seed = random(&[2, 3, 10]);
    let gradients = |f: &dyn Fn(&[Tensor; 4]) -> Tensor| {
        let leaves = [leaf(&y), leaf(&x), leaf(&a), leaf(&b)];
        let result = f(&leaves);
        backward(&[(&result, Some(&seed))], false).unwrap();
        (result.detach(), leaves.map(|leaf| leaf.grad()))
    };
    let ours = gradients(&|[y, x, a, b]| lora(y, x, a, b, 1.5).unwrap());
    let plain = gradients(&|[y, x, a, b]| y + x.matmul(&a.tr()).matmul(&b.tr()) * 1.5);
    assert!(close(&ours.0, &plain.0));
    for (ours, plain) in ours.1.iter().zip(&plain.1) {
        assert!(close(ours, plain));
    }
}

#[test]
fn lora_on_bf16_activations_keeps_its_gradients_in_f32() {
    let [y, x] = [random(&[3, 10]), random(&[3, 8])].map(|t| t.to_kind(Kind::BFloat16));
    let [a, b] = [leaf(&random(&[4, 8])), leaf(&random(&[10, 4]))];
    let result = lora(&y, &x, &a, &b, 1.0).unwrap();
    assert_eq!(result.kind(), Kind::BFloat16);
    backward(&[(&result.sum(Kind::Float), None)], false).unwrap();
    assert_eq!((a.grad().kind(), b.grad().kind()), (Kind::Float, Kind::Float));
}

#[test]
fn backward_adds_to_gradients() {
    let x = leaf(&random(&[3]));
    for times in 1..=3 {
        backward(&[(&(&x * 2.0), Some(&Tensor::from_slice(&[1f32, 10.0, 100.0])))], false).unwrap();
        let expected = Tensor::from_slice(&[2f32, 20.0, 200.0]) * times as f64;
        assert!(close(&x.grad(), &expected));
    }
}

#[test]
fn random_state_put_back_repeats_the_draws() {
    tch::manual_seed(11);
    let _ = random(&[7]);
    let state = rng_state().unwrap();
    let first = random(&[16]);
    set_rng_state(&state).unwrap();
    assert_eq!((random(&[16]) - first).abs().max().double_value(&[]), 0.0);
    assert!(set_rng_state(&[1, 2, 3]).is_err());
}

#[test]
fn failures_come_back_as_errors() {
    let weight = weight(64, 128, Float::F32);
    let message = quant_linear(&random(&[2, 64]), &weight, None).unwrap_err().to_string();
    assert!(message.contains("input has 64 features, the weight takes 128"), "{message}");
    let double = Tensor::ones([2, 128], (Kind::Double, Device::Cpu));
    assert!(quant_linear(&double, &weight, None).unwrap_err().to_string().contains("float32 or bfloat16"));
    let no_history = random(&[1]);
    assert!(backward(&[(&no_history, None)], false).unwrap_err().to_string().contains("does not require grad"));
}

#[test]
fn history_keeps_the_weight_alive() {
    let weight = weight(64, 128, Float::F32);
    let x = leaf(&random(&[2, 128]));
    let y = quant_linear(&x, &weight, None).unwrap();
    let dense = weight.dequantize();
    drop(weight);
    backward(&[(&y.sum(Kind::Float), None)], false).unwrap();
    assert!(close(&x.grad(), &Tensor::ones([2, 64], (Kind::Float, Device::Cpu)).matmul(&dense)));
}
