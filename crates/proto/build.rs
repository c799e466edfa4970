//! Compiles the contract; no `protoc` needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "../../proto/hostel/v1/hostel.proto";
    println!("cargo:rerun-if-changed={proto}");
    let descriptors = protox::compile([proto], ["../../proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
