//! Link arguments for this package's tests.

fn main() {
    tailor_torch_link::emit();
}
