//! The commands, a file each, and what several of them share.

pub mod adapters;
pub mod answerer;
pub mod ask;
pub mod chat;
pub mod choices;
pub mod completions;
pub mod datasets;
pub mod events;
pub mod export;
pub mod fetch;
pub mod gc;
pub mod generate;
pub(crate) mod job_lines;
pub mod jobs;
pub mod logits;
pub mod make_base;
pub mod policies;
pub mod prepare;
pub mod quantize;
pub mod sampling;
pub mod tokenize;
pub mod train;
pub mod up;
pub(crate) mod watch;
