//! Measures a running deployment over gRPC, as a client process of its own: speed, times to first
//! and between tokens, promotions under load, and memory after many answers.
//!
//! `serving adapters` publishes the adapters that the other parts ask; each part prints a line of
//! JSON a figure. `tools/bench-serving` starts the deployment and runs the parts.

#![allow(clippy::print_stdout)]

mod adapters;
mod churn;
mod deployment;
mod first_token;
mod mixed;
mod prompts;
mod statistics;
mod swaps;
mod together;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::deployment::Deployment;
use crate::prompts::Prompts;

/// Threads of the client: few, so that it leaves the machine to the server.
const THREADS: usize = 4;

#[derive(Debug, Parser)]
struct Args {
    /// Where inference answers
    #[arg(long, global = true, default_value = "http://127.0.0.1:7670")]
    endpoint: String,
    /// Where the trainer answers, if elsewhere
    #[arg(long, global = true)]
    trainer: Option<String>,
    /// Where the metrics of inference are
    #[arg(long, global = true, default_value = "http://127.0.0.1:7680")]
    admin: String,
    /// The folder of the base that is served, for its tokenizer and shape
    #[arg(long, global = true, default_value = "demo/base")]
    base: PathBuf,
    /// HTTP/2 connections that share the requests
    #[arg(long, global = true, default_value_t = 8)]
    connections: usize,
    /// Seed of prompts, lengths and cancellations
    #[arg(long, global = true, default_value_t = 0)]
    seed: u64,
    /// Cargo's mark of a benchmark
    #[arg(long, global = true, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Publishes adapters and promotes an alias to each
    Adapters(adapters::Options),
    /// Tokens per second of sequences that all begin at once
    Together(together::Options),
    /// Time to first token on an idle server
    FirstToken(first_token::Options),
    /// Times between tokens while adapters are promoted and long prompts arrive
    Swaps(swaps::Options),
    /// Pages and memory after many answers of random lengths, some cancelled
    Churn(churn::Options),
    /// A steady load of prompts whose lengths a file gives
    Mixed(mixed::Options),
}

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo bench` of the whole workspace name no part.
    let words: Vec<_> = std::env::args_os().collect();
    if words.iter().skip(1).all(|word| word == "--bench") {
        println!("no part is named: tools/bench-serving runs all");
        return Ok(());
    }
    let args = Args::parse_from(words);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> Result<()> {
    let trainer = args.trainer.as_deref().unwrap_or(&args.endpoint);
    let deployment = Deployment::new(&args.endpoint, trainer, &args.admin, args.connections)?;
    let deployment = Arc::new(deployment);
    let mut prompts = Prompts::open(&args.base, args.seed)?;
    match args.part {
        Part::Adapters(options) => adapters::run(&deployment, &prompts, &options).await,
        Part::Together(options) => together::run(&deployment, &mut prompts, &options).await,
        Part::FirstToken(options) => first_token::run(&deployment, &mut prompts, &options).await,
        Part::Swaps(options) => swaps::run(&deployment, prompts, &options).await,
        Part::Churn(options) => churn::run(&deployment, prompts, &options).await,
        Part::Mixed(options) => mixed::run(&deployment, &mut prompts, &options).await,
    }
}
