//! Link arguments for the program and the tests.

fn main() {
    tailor_torch_link::emit();
}
