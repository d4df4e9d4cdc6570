//! The time to the first token, of one request at a time.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::deployment::Deployment;
use crate::prompts::{Prompts, asked};
use crate::statistics::spread;

/// Requests before those that count.
const WARM_UP: usize = 5;

/// The options of `serving first-token`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Tokens of each prompt
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Requests
    #[arg(long, default_value_t = 100)]
    requests: usize,
    /// Adapters that they are spread over
    #[arg(long, default_value_t = 1)]
    adapters: usize,
}

/// Measures it.
pub(crate) async fn run(
    deployment: &Deployment,
    prompts: &mut Prompts,
    options: &Options,
) -> Result<()> {
    let mut times = Vec::new();
    for n in 0..WARM_UP + options.requests {
        let question = prompts.question(&asked(n, options.adapters), options.prompt, 1)?;
        let answer = deployment.ask(&question).await?;
        let first = answer.to_first_token().context("no token came")?;
        if n >= WARM_UP {
            times.push(first);
        }
    }
    let line = json!({
        "part": "first-token",
        "prompt": options.prompt,
        "adapters": options.adapters,
        "to_first_token": spread(&times),
    });
    println!("{line}");
    Ok(())
}
