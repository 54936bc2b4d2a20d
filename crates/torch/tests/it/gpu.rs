//! What a process without a GPU is told.

use tailor_domain::ErrorCode;
use tailor_torch::gpu;
use tch::Device;

#[test]
fn a_gpu_that_is_not_there_is_refused_with_what_is_missing() {
    let Err(error) = gpu::open() else { return }; // this machine has one
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    let message = error.to_string();
    assert!(message.starts_with("no GPU can be used: "), "{message}");
    assert!(
        ["LD_LIBRARY_PATH", "install it", "CUDA_VISIBLE_DEVICES", "the driver shows none"]
            .iter()
            .any(|remedy| message.contains(remedy)),
        "{message}"
    );
    assert_eq!(gpu::device("cuda").unwrap_err().to_string(), message, "asked again it says the same");
    assert_eq!(gpu::device("auto").expect("the CPU serves"), Device::Cpu);
    assert!(gpu::device_bytes(0).is_err() && gpu::reset_device_peak(0).is_err());
}

#[test]
fn devices_are_named_as_the_message_says() {
    assert_eq!(gpu::device("cpu").expect("always"), Device::Cpu);
    for name in ["gpu", "cuda:", "cuda:x", "cuda1", "CPU", ""] {
        let message = gpu::device(name).unwrap_err().to_string();
        assert!(message.contains("none of cpu, cuda, cuda:<number>, auto"), "{name}: {message}");
    }
}

#[test]
fn a_parked_tensor_comes_back_as_it_left() {
    let tensor = tch::Tensor::randn([3, 5], (tch::Kind::Float, Device::Cpu));
    let mut parked = gpu::Parked::new(&tensor).expect("memory");
    let before = tensor.copy();
    let _ = tensor.shallow_clone().zero_();
    parked.prefetch().expect("memory");
    assert!(parked.fetch().expect("memory").equal(&before));
}
