//! GPT-NeoX and its adapters: configuration, weights, one network for training and decoding, LoRA,
//! optimizer, sampling.
//!
//! The crate is pure: it computes, and reads and writes only the files that it is given. The flow
//! of training is [`Base`] → [`Training`] over [`Batch`]es → [`adapter::to_files`]; that of serving
//! is [`adapter::from_files`] → [`Engine::adapter`] → [`decode::Decoder`] → [`sampling::Sampler`].

pub mod adapter;
pub mod base;
pub mod batch;
pub mod config;
pub mod decode;
pub mod device;
pub mod engine;
pub mod error;
pub mod float;
pub mod logprobs;
pub mod lora;
pub mod memory;
pub mod merge;
pub mod optim;
pub mod precision;
pub mod quant;
pub mod sampling;
pub mod tensor_file;
pub mod training;
pub mod weight;

mod activation;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod cut;
mod dropout;
mod gpu_limits;
mod mapped;
mod names;
mod network;
mod ops;
mod random;
mod simd;
mod stored;
mod target;
mod world;

pub use activation::Activation;
pub use base::Base;
pub use batch::{Batch, WindowLoss};
pub use config::Config;
pub use device::{Device, DeviceName, Gpu};
pub use dropout::Dropout;
pub use engine::{Adapter, Cache, Engine, Phase, Segment};
pub use error::{Error, Result};
pub use float::Float;
pub use gpu_limits::GpuMemory;
pub use lora::{Lora, LoraConfig};
pub use ops::decoding::PAGE;
pub use precision::Precision;
pub use target::Target;
pub use training::Training;
pub use weight::Weight;
pub use world::World;
