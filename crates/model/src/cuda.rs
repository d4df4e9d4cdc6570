//! An NVIDIA GPU: matrices of f32, bf16 or f16 in its memory, products by cuBLASLt, our kernels for
//! the rest.
//!
//! All work but copies of bases and adapters is in one stream, in the order of the calls, and the
//! host waits only to read. Libraries are looked up at run time. No kernel adds floats in an order
//! that depends on timing, so that a pass repeats bit for bit.
//!
//! Each file uses only files above it in this list. [`Cuda`] has its fields in `context`; the files
//! below that one implement its methods.
//!
//! | file | contents |
//! |---|---|
//! | `array` | matrices and buffers in GPU memory |
//! | `shared_memory` | sizes of attention's tiles in shared memory |
//! | `pool`, `gpu` | the driver's memory pool; opening a GPU, its properties, refusals |
//! | `kernels` | the list of kernels (`kernels/*.cu`) and their compilation |
//! | `product_plan`, `library` | a product of cuBLASLt and its algorithm; the library |
//! | `staging`, `loading` | copying a base to the GPU; the state while it is loaded |
//! | `uploads` | copying adapters while the GPU computes |
//! | `reuse` | buffers that recorded passes share |
//! | `graphs` | recorded passes of decoding |
//! | `recorder` | what benchmarks record (feature `bench`) |
//! | `context` | [`Cuda`], the state of a GPU's engine |
//! | `memory` | allocation, copies to and from the GPU |
//! | `launch` | launches of kernels, and their arguments |
//! | `products` | matrix products by the library |
//! | `values` | casts, sums |
//! | `replay` | recording and replaying passes of decoding |
//! | `results` | results on their way to the host |
//! | `highest`, `scores` | the highest logits of each row; what log-probabilities need of it |
//! | `layout` | a pass's rows and tiles |
//! | `lora` | products with a side as narrow as a rank |
//! | `fp8`, `frozen` | weights in 8-bit floats; weights in any precision |
//! | `few_rows` | products of few rows with weights as they are held |
//! | `quantize` | a base's tensors from its files into their precision |
//! | `attention` | attention within a pass |
//! | `pages`, `adapter` | pages of keys and values; an adapter as decoding reads it |
//! | `decode_layout` | the sequences of a decoding pass |
//! | `decode_lora`, `page_attention` | their LoRA; their attention over pages |
//! | `operations` | [`Ops`](crate::ops::Ops) |
//! | `training` | [`Learn`](crate::ops::training::Learn) |
//! | `decoding` | [`Decode`](crate::ops::decoding::Decode) |
//! | `setup` | making a GPU ready for a base |
//! | `bench` | measurements for `benches/card` (feature `bench`) |

#![allow(unsafe_code)]

mod adapter;
mod array;
mod attention;
#[cfg(feature = "bench")]
mod bench;
mod context;
mod decode_layout;
mod decode_lora;
mod decoding;
mod few_rows;
mod fp8;
mod frozen;
mod gpu;
mod graphs;
mod highest;
mod kernels;
mod launch;
mod layout;
mod library;
mod loading;
mod lora;
mod memory;
mod operations;
mod page_attention;
mod pages;
mod pool;
mod product_plan;
mod products;
mod quantize;
#[cfg(feature = "bench")]
mod recorder;
mod replay;
mod results;
mod reuse;
mod scores;
mod setup;
mod shared_memory;
mod staging;
mod training;
mod uploads;
mod values;

pub(crate) use context::Cuda;
pub(crate) use gpu::OpenGpu;
