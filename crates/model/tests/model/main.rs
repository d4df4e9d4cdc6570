//! The crate's tests by subject. They share one binary, because linking takes longer than running.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

mod adapter;
mod backward;
mod bitsandbytes;
mod chosen;
mod coming_and_going;
mod decode;
mod determinism;
mod device;
#[cfg(feature = "cuda")]
mod exact;
mod load;
mod loading;
mod oracle;
mod packing;
mod prefixes;
mod quantized;
mod quantized_folder;
mod same_bytes;
mod scale;
mod support;
mod training;
mod window;
mod wrapped;
