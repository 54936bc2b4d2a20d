//! 4 bits to floats: the bits of tailor-quant, whatever the code, the scales, the shape and the type.

use half::bf16;
use tailor_quant::{Backend, BlockSize, Code, Float, Quantized, quantize};
use tailor_torch::device::{DeviceWeight, dequantize_group, device_project};
use tailor_torch::{
    Factors, Projection, ProjectionWeight, QuantWeight, backward, lora, project, quant_linear, without_values,
};
use tch::{Device, Kind, Tensor};

use super::{device, near};

fn weight(out: usize, input: usize, dtype: Float, code: Code, block: usize, double: bool) -> Quantized {
    // Magnitudes from 1e-6 to 1, so that scales of blocks differ and f16 has subnormals to round to.
    let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0 * 10f32.powi(-((i / 500 % 7) as i32));
    let values: Vec<f32> = (0..out * input).map(|i| dtype.round(value(i))).collect();
    let block = BlockSize::try_new(block).expect("a size");
    quantize(&values, &[out, input], dtype, code, block, double, Backend::Cpu).expect("quantises")
}

fn on_device(weight: &Quantized) -> DeviceWeight {
    DeviceWeight::new(weight, device()).expect("a matrix")
}

fn same_bits(weight: &Quantized) {
    let case = format!("{:?} {:?} {:?} block {}", weight.shape(), weight.dtype(), weight.code(), weight.blocksize());
    let on_device = on_device(weight);
    let mut wide = vec![0f32; weight.elements()];
    weight.dequantize_f32(&mut wide);
    let ours = dequantize_group(&[&on_device], Kind::Float).expect("launches").reshape([-1]).to_device(Device::Cpu);
    let ours = Vec::<f32>::try_from(&ours).expect("values");
    let differ = ours.iter().zip(&wide).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differ, None, "{case}, f32");
    let mut narrow = vec![bf16::ZERO; weight.elements()];
    weight.dequantize_bf16(&mut narrow);
    let ours = dequantize_group(&[&on_device], Kind::BFloat16).expect("launches").reshape([-1]).to_device(Device::Cpu);
    let mut bits = vec![0u8; ours.numel() * 2];
    ours.copy_data_u8(&mut bits, ours.numel());
    let theirs: Vec<u8> = narrow.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect();
    assert_eq!(bits.iter().zip(&theirs).position(|(a, b)| a != b), None, "{case}, bf16");
}

#[test]
fn kernel_dequantises_to_the_bits_of_the_cpu_for_every_code_scale_and_type() {
    for code in [Code::Nf4, Code::Fp4, Code::Uniform4] {
        for double in [true, false] {
            for dtype in [Float::F32, Float::Bf16, Float::F16] {
                same_bits(&weight(96, 256, dtype, code, 64, double)); // three whole blocks of threads
            }
        }
    }
}

#[test]
fn kernel_dequantises_shapes_that_fill_no_block_of_threads_and_no_block_of_scales() {
    for (out, input, block) in [(1, 2, 64), (7, 33, 64), (48, 40, 32), (129, 65, 4096), (130, 64, 2048)] {
        same_bits(&weight(out, input, Float::Bf16, Code::Nf4, block, true));
    }
}

#[test]
fn a_group_in_one_launch_equals_its_weights_one_by_one() {
    // The second begins at an odd element, where no whole access may be made.
    for shapes in [[96usize, 32, 64], [3, 96, 1]] {
        let weights: Vec<Quantized> =
            shapes.iter().map(|out| weight(*out, 257, Float::Bf16, Code::Nf4, 64, true)).collect();
        let devices: Vec<DeviceWeight> = weights.iter().map(on_device).collect();
        let whole = dequantize_group(&devices.iter().collect::<Vec<_>>(), Kind::BFloat16).expect("launches");
        let parts: Vec<Tensor> =
            devices.iter().map(|one| dequantize_group(&[one], Kind::BFloat16).expect("launches")).collect();
        assert!(whole.equal(&Tensor::cat(&parts, 0)), "{shapes:?}");
    }
}

#[test]
fn grouped_linear_layers_equal_the_cpus_in_value_and_gradient() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let weights = [64, 32, 32].map(|out| weight(out, 48, Float::Bf16, Code::Nf4, 64, true));
        let x = Tensor::randn([2, 5, 48], (Kind::Float, Device::Cpu)).to_kind(kind);
        let seeds = [64, 32, 32].map(|out| Tensor::randn([2, 5, out], (Kind::Float, Device::Cpu)).to_kind(kind));
        let gradients = |on: Device, outputs: &dyn Fn(&Tensor) -> Vec<Tensor>| {
            let x = x.to_device(on).copy().set_requires_grad(true);
            let outputs = outputs(&x);
            let seeds: Vec<_> = seeds.iter().map(|seed| seed.to_device(on)).collect();
            let roots: Vec<_> = outputs.iter().zip(&seeds).map(|(y, seed)| (y, Some(seed))).collect();
            backward(&roots, false).expect("goes back");
            (outputs.iter().map(Tensor::detach).collect::<Vec<_>>(), x.grad())
        };
        let devices = weights.clone().map(|weight| on_device(&weight));
        let ours = gradients(device(), &|x| {
            device_project(x, &devices.iter().map(|one| (one, None)).collect::<Vec<_>>()).expect("runs")
        });
        let plain = gradients(Device::Cpu, &|x| {
            let weights = weights.iter().map(|weight| QuantWeight::new(weight.clone()).expect("a matrix"));
            weights.map(|weight| quant_linear(x, &weight, None).expect("runs")).collect()
        });
        for (ours, plain) in ours.0.iter().zip(&plain.0) {
            near(ours, plain, kind);
        }
        near(&ours.1, &plain.1, kind);
    }
}

#[test]
fn grouped_layers_without_values_have_the_same_gradients() {
    let weight = on_device(&weight(64, 48, Float::Bf16, Code::Nf4, 64, true));
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device()));
    let (x, seed) = (random(&[5, 48]).to_kind(Kind::BFloat16), random(&[5, 64]).to_kind(Kind::BFloat16));
    let pair = [random(&[4, 48]), random(&[64, 4])];
    let gradients = |valued: bool| {
        let leaf = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
        let (x, a, b) = (leaf(&x), leaf(&pair[0]), leaf(&pair[1]));
        let make = || device_project(&x, &[(&weight, Some(Factors { a: &a, b: &b, scale: 1.5 }))]).expect("runs");
        let made = if valued { make() } else { without_values(make) };
        assert_eq!(made[0].abs().sum(Kind::Double).double_value(&[]) > 0.0, valued);
        backward(&[(&made[0], Some(&seed))], false).expect("goes back");
        [x.grad(), a.grad(), b.grad()]
    };
    assert_eq!(gradients(true), gradients(false));
}

/// What layers give for x and their A and B.
type Layers<'a> = &'a dyn Fn(&Tensor, &[(Tensor, Tensor)]) -> Vec<Tensor>;

/// Every other layer has LoRA; values and all gradients are those of the CPU's projections.
#[test]
fn grouped_layers_with_lora_equal_the_cpus_in_value_and_gradients() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let outs = [64i64, 32, 48];
        let weights = outs.map(|out| weight(out as usize, 64, Float::Bf16, Code::Nf4, 64, true));
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.3;
        let x = random(&[2, 5, 64]).to_kind(kind);
        let pairs: Vec<_> = outs.iter().map(|out| (random(&[4, 64]), random(&[*out, 4]))).collect();
        let seeds: Vec<_> = outs.iter().map(|out| random(&[2, 5, *out]).to_kind(kind)).collect();
        let gradients = |on: Device, run: Layers<'_>| {
            let leaf = |tensor: &Tensor| tensor.to_device(on).copy().set_requires_grad(true);
            let (x, pairs) = (leaf(&x), pairs.iter().map(|(a, b)| (leaf(a), leaf(b))).collect::<Vec<_>>());
            let outputs = run(&x, &pairs);
            let seeds: Vec<_> = seeds.iter().map(|seed| seed.to_device(on)).collect();
            let roots: Vec<_> = outputs.iter().zip(&seeds).map(|(y, seed)| (y, Some(seed))).collect();
            backward(&roots, false).expect("goes back");
            let mut all: Vec<Tensor> = outputs.iter().map(Tensor::detach).collect();
            all.push(x.grad());
            for at in [0, 2] {
                all.extend([pairs[at].0.grad(), pairs[at].1.grad()]);
            }
            all
        };
        let of = |pairs: &'_ [(Tensor, Tensor)], at: usize| -> Option<(Tensor, Tensor)> {
            (at != 1).then(|| (pairs[at].0.shallow_clone(), pairs[at].1.shallow_clone()))
        };
        let devices = weights.clone().map(|weight| on_device(&weight));
        let ours = gradients(device(), &|x, pairs| {
            let own: Vec<_> = (0..3).map(|at| of(pairs, at)).collect();
            let layers = devices
                .iter()
                .zip(&own)
                .map(|(weight, own)| (weight, own.as_ref().map(|(a, b)| Factors { a, b, scale: 1.5 })));
            device_project(x, &layers.collect::<Vec<_>>()).expect("runs")
        });
        let plain = gradients(Device::Cpu, &|x, pairs| {
            let own: Vec<_> = (0..3).map(|at| of(pairs, at)).collect();
            let weights = weights.clone().map(|weight| QuantWeight::new(weight).expect("a matrix"));
            let layers = weights.iter().zip(&own).map(|(weight, own)| Projection {
                weight: ProjectionWeight::FourBit(weight),
                bias: None,
                lora: own.as_ref().map(|(a, b)| Factors { a, b, scale: 1.5 }),
            });
            project(x, &layers.collect::<Vec<_>>()).expect("runs")
        });
        for (ours, plain) in ours.iter().zip(&plain) {
            near(ours, plain, kind_of(ours, kind));
        }
    }
}

/// Gradients of parameters are f32 however their products were made.
fn kind_of(tensor: &Tensor, computed: Kind) -> Kind {
    if tensor.kind() == Kind::Float { computed } else { tensor.kind() }
}

#[test]
fn lora_in_the_type_of_its_input_equals_the_cpus_in_value_and_gradients() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.3;
        let (y, x) = (random(&[2, 3, 10]).to_kind(kind), random(&[2, 3, 8]).to_kind(kind));
        let (a, b, seed) = (random(&[4, 8]), random(&[10, 4]), random(&[2, 3, 10]).to_kind(kind));
        let gradients = |on: Device, run: &dyn Fn(&[Tensor; 4]) -> Tensor| {
            let leaves = [&y, &x, &a, &b].map(|tensor| tensor.to_device(on).copy().set_requires_grad(true));
            let sum = run(&leaves);
            backward(&[(&sum, Some(&seed.to_device(on)))], false).expect("goes back");
            (sum.detach(), leaves.map(|leaf| leaf.grad()))
        };
        let plain = gradients(Device::Cpu, &|[y, x, a, b]| {
            let h = x.to_kind(Kind::Float).matmul(&a.tr()).matmul(&b.tr());
            (y.to_kind(Kind::Float) + h * 1.5).to_kind(kind)
        });
        let ours = gradients(device(), &|[y, x, a, b]| lora(y, x, a, b, 1.5).expect("runs"));
        near(&ours.0, &plain.0, kind);
        for (ours, plain) in ours.1.iter().zip(&plain.1) {
            near(ours, plain, kind);
        }
        assert_eq!(ours.1[2].kind(), Kind::Float, "parameters keep f32 gradients");
    }
}

#[test]
fn weights_that_cannot_be_right_are_refused_in_words() {
    let one = on_device(&weight(8, 16, Float::F32, Code::Nf4, 64, true));
    let other = on_device(&weight(8, 32, Float::F32, Code::Nf4, 64, true));
    let refused = |result: tailor_torch::Result<Tensor>| result.expect_err("refused").to_string();
    assert!(refused(dequantize_group(&[&one, &other], Kind::Float)).contains("take 16 and 32 features"));
    assert!(refused(dequantize_group(&[&one; 5], Kind::Float)).contains("5 weights in one launch; the limit is 4"));
    let x = Tensor::ones([2, 17], (Kind::Float, device()));
    let error = device_project(&x, &[(&one, None)]).expect_err("refused").to_string();
    assert!(error.contains("input has 17 features, the weight takes 16"), "{error}");
}
