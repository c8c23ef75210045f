//! Compiles the .proto files in pure Rust: no protoc on the machine is needed.

const PROTOS: [&str; 4] =
    ["shoal/v1/gossip.proto", "shoal/v1/rpc.proto", "shoal/v1/control.proto", "shoal/v1/pack.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=shoal");
    let files = protox::compile(PROTOS, ["."])?;
    tonic_prost_build::configure()
        .bytes("shoal.v1.InferRequest.body")
        .bytes("shoal.v1.InferFrame.chunk")
        .compile_fds(files)?;
    Ok(())
}
