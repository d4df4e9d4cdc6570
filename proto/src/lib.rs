//! The wire contract: messages, services and their proto3 JSON form. Generated; nothing else lives
//! here.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    reason = "generated code"
)]

/// The whole contract, Arrow Flight with it, as a serialized `FileDescriptorSet`: for gRPC
/// reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/togi.bin"));

macro_rules! packages {
    ($($module:ident $name:literal)*) => {$(
        #[doc = concat!("The package `", $name, "`.")]
        pub mod $module {
            /// Version 1.
            pub mod v1 {
                tonic::include_proto!($name);
                include!(concat!(env!("OUT_DIR"), "/", $name, ".serde.rs"));
            }
        }
    )*};
}

packages! {
    job "togi.job.v1"
    dataprep "togi.dataprep.v1"
    trainer "togi.trainer.v1"
    inference "togi.inference.v1"
    events "togi.events.v1"
}
