//! A load as users make it: prompts and answers whose lengths are drawn from a file, over many
//! adapters. Either as many requests are always under way, or they arrive at a rate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::deployment::{Answer, Deployment, Question};
use crate::prompts::{Prompts, asked};
use crate::statistics::spread;

/// The options of `serving mixed`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Lines of one number, a prompt's tokens, or two, the prompt's and the answer's
    #[arg(long)]
    lengths: PathBuf,
    /// Tokens of an answer, where the file does not tell
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// Requests
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// Adapters, of which each request asks a random one
    #[arg(long, default_value_t = 64)]
    adapters: usize,
    /// Requests under way together
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    /// Requests that arrive a second, at random times, however many are under way
    #[arg(long, conflicts_with = "at_once")]
    rate: Option<f64>,
}

/// Measures it.
pub(crate) async fn run(
    deployment: &Arc<Deployment>,
    prompts: &mut Prompts,
    options: &Options,
) -> Result<()> {
    let questions = questions(prompts, options)?;
    let gap = |prompts: &mut Prompts| {
        let rate = options.rate?;
        let uniform: f64 = prompts.rng.random_range(f64::MIN_POSITIVE..1.0);
        Some(Duration::from_secs_f64(-uniform.ln() / rate))
    };
    let gaps: Vec<_> = questions.iter().map(|_| gap(prompts)).collect();
    let began = Instant::now();
    let (answers, refused) = ask_all(deployment, questions, gaps, options.at_once).await?;
    // Speeds count while requests are still sent: after that, few long answers are left.
    let until = answers.iter().map(|answer| answer.sent).max();
    let until = until.context("all requests were refused")?;
    let seconds = (until - began).as_secs_f64();
    let tokens = answers.iter().flat_map(|answer| &answer.times);
    let tokens = tokens.filter(|time| **time <= until).count();
    let ended = answers.iter().filter_map(|answer| answer.times.last());
    let ended = ended.filter(|time| **time <= until).count();
    let first: Vec<_> = answers.iter().filter_map(Answer::to_first_token).collect();
    let between: Vec<_> = answers.iter().flat_map(Answer::between_tokens).collect();
    let whole = answers
        .iter()
        .filter_map(|answer| Some(*answer.times.last()? - answer.sent));
    let line = json!({
        "part": "mixed",
        "requests": options.requests,
        "adapters": options.adapters,
        "at_once": options.rate.is_none().then_some(options.at_once),
        "rate_per_s": options.rate,
        "refused": refused,
        "seconds": seconds,
        "requests_per_s": ended as f64 / seconds,
        "tokens_per_s": tokens as f64 / seconds,
        "to_first_token": spread(&first),
        "between_tokens": spread(&between),
        "whole": spread(&whole.collect::<Vec<_>>()),
    });
    println!("{line}");
    Ok(())
}

fn questions(prompts: &mut Prompts, options: &Options) -> Result<Vec<Question>> {
    let lengths = lengths(&options.lengths, options.new).context("--lengths")?;
    let longest = prompts.config.max_position_embeddings;
    let question = |_| {
        let (prompt, new) = lengths[prompts.rng.random_range(0..lengths.len())];
        let new = new.clamp(1, longest - 1);
        let number = prompts.rng.random_range(0..options.adapters.max(1));
        let adapter = asked(number, options.adapters);
        prompts.question(&adapter, prompt.clamp(1, longest - new), new)
    };
    (0..options.requests).map(question).collect()
}

fn lengths(file: &Path, new: usize) -> Result<Vec<(usize, usize)>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let prompt = numbers.next().context("an empty line")??;
        Ok((prompt, numbers.next().transpose()?.unwrap_or(new)))
    };
    let lengths: Vec<_> = text.lines().map(line).collect::<Result<_>>()?;
    ensure!(!lengths.is_empty(), "{} is empty", file.display());
    Ok(lengths)
}

/// Asks all questions, each this time after the one before it, or once there is a place; returns
/// the answers, and how many the server refused.
async fn ask_all(
    deployment: &Arc<Deployment>,
    questions: Vec<Question>,
    gaps: Vec<Option<Duration>>,
    at_once: usize,
) -> Result<(Vec<Answer>, usize)> {
    let places = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    let mut next = tokio::time::Instant::now();
    for (question, gap) in questions.into_iter().zip(gaps) {
        let place = match gap {
            None => Some(places.clone().acquire_owned().await?),
            Some(gap) => {
                next += gap;
                tokio::time::sleep_until(next).await;
                None
            }
        };
        let deployment = deployment.clone();
        tasks.spawn(async move {
            let answer = deployment.ask(&question).await;
            drop(place);
            answer
        });
    }
    let (mut answers, mut refused) = (Vec::new(), 0);
    while let Some(answer) = tasks.join_next().await {
        match answer? {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                let status = error.downcast_ref::<Status>().map(Status::code);
                if status != Some(Code::ResourceExhausted) {
                    return Err(error);
                }
                refused += 1;
            }
        }
    }
    Ok((answers, refused))
}
