//! Generates the messages of an event file.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["event.proto"], ["proto"])?;
    prost_build::compile_fds(descriptors)?;
    Ok(())
}
