//! Links libtorch into the binary and its tests.

fn main() {
    tailor_torch_link::emit();
}
