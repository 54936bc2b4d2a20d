fn main() {
    tailor_torch_link::emit()
}
