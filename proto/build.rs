//! Compiles the contract without protoc and adds proto3's JSON mapping.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 7] = [
    "togi/job/v1/job.proto",
    "togi/dataprep/v1/dataprep.proto",
    "togi/trainer/v1/trainer.proto",
    "togi/trainer/v1/adapter.proto",
    "togi/trainer/v1/policy.proto",
    "togi/inference/v1/inference.proto",
    "togi/events/v1/events.proto",
];
/// Described to clients that ask by reflection; its code is the crate arrow-flight's.
const FLIGHT: &str = "arrow/flight/protocol/flight.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=togi");
    println!("cargo::rerun-if-changed=arrow");
    let described = protox::compile(FILES.into_iter().chain([FLIGHT]), ["."])?;
    let file = PathBuf::from(env::var("OUT_DIR")?).join("togi.bin");
    std::fs::write(file, described.encode_to_vec())?;
    let descriptors = protox::compile(FILES, ["."])?;
    let bytes = descriptors.encode_to_vec();
    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&bytes)?
        .build(&[".togi"])?;
    Ok(())
}
