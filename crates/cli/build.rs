//! Links libtorch into `tailor`, which carries the trainer and the gateway for its embedded mode.

fn main() {
    tailor_torch_link::emit();
}
