//! Sequences that all begin at once and have equal lengths, as the peers are measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::task::JoinSet;

use crate::deployment::{Answer, Deployment};
use crate::prompts::{Prompts, asked};
use crate::statistics::{median, spread};

/// Repetitions, of which the median counts; one more before them does not count.
const RUNS: usize = 3;

/// The options of `serving together`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Sequences and the adapters that they are spread over; 0 adapters for the base alone
    #[arg(value_name = "SEQUENCES:ADAPTERS", required = true, value_parser = case)]
    cases: Vec<(usize, usize)>,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 256)]
    new: usize,
}

fn case(text: &str) -> Result<(usize, usize)> {
    let (sequences, adapters) = text.split_once(':').context("it looks like 32:4")?;
    Ok((sequences.parse()?, adapters.parse()?))
}

/// Measures each case.
pub(crate) async fn run(
    deployment: &Arc<Deployment>,
    prompts: &mut Prompts,
    options: &Options,
) -> Result<()> {
    for &(sequences, adapters) in &options.cases {
        let (mut speeds, mut first, mut between) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..=RUNS {
            let (seconds, answers) =
                once(deployment, prompts, sequences, adapters, options).await?;
            if run == 0 {
                continue;
            }
            speeds.push((sequences * options.new) as f64 / seconds.as_secs_f64());
            first.extend(answers.iter().filter_map(Answer::to_first_token));
            between.extend(answers.iter().flat_map(Answer::between_tokens));
        }
        let line = json!({
            "part": "together",
            "sequences": sequences,
            "adapters": adapters,
            "prompt": options.prompt,
            "new": options.new,
            "tokens_per_s": median(speeds.clone()),
            "runs": speeds,
            "to_first_token": spread(&first),
            "between_tokens": spread(&between),
        });
        println!("{line}");
    }
    Ok(())
}

/// Runs a case; returns the time from the first request to the last token.
async fn once(
    deployment: &Arc<Deployment>,
    prompts: &mut Prompts,
    sequences: usize,
    adapters: usize,
    options: &Options,
) -> Result<(Duration, Vec<Answer>)> {
    let question = |n| prompts.question(&asked(n, adapters), options.prompt, options.new);
    let questions: Vec<_> = (0..sequences).map(question).collect::<Result<_>>()?;
    let began = Instant::now();
    let mut asking = JoinSet::new();
    for question in questions {
        let deployment = deployment.clone();
        asking.spawn(async move { deployment.ask(&question).await });
    }
    let answers: Vec<Answer> = asking.join_all().await.into_iter().collect::<Result<_>>()?;
    let last = answers
        .iter()
        .filter_map(|answer| answer.times.last())
        .max();
    Ok((*last.context("no token came")? - began, answers))
}
