//! Times between tokens of sequences that are written all the time: first undisturbed, then while
//! long prompts arrive and adapters are promoted. Some promotions are followed to the first answer
//! by the new generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use rand::RngExt as _;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::deployment::{Deployment, Question};
use crate::prompts::{Prompts, asked};
use crate::statistics::{percentile, spread};

/// Time between two questions of who answers now.
const POLL: Duration = Duration::from_millis(2);
/// The longest wait for the first answer by a promoted generation.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time after which a change of the load counts.
const SETTLE: Duration = Duration::from_secs(2);

/// The options of `serving swaps`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Sequences that are written all the time
    #[arg(long, default_value_t = 32)]
    sequences: usize,
    /// Adapters that they are spread over
    #[arg(long, default_value_t = 4)]
    adapters: usize,
    /// Tokens of their prompts
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// Tokens of their answers
    #[arg(long, default_value_t = 512)]
    new: usize,
    /// Seconds without other load
    #[arg(long, default_value_t = 10.0)]
    quiet_seconds: f64,
    /// Seconds with it
    #[arg(long, default_value_t = 20.0)]
    loaded_seconds: f64,
    /// Promotions a second
    #[arg(long, default_value_t = 10.0)]
    promotions: f64,
    /// Every how many promotions one is followed to the first answer
    #[arg(long, default_value_t = 5)]
    followed: usize,
    /// Tokens of a long prompt
    #[arg(long, default_value_t = 1900)]
    long_prompt: usize,
    /// Tokens of its answer
    #[arg(long, default_value_t = 16)]
    long_new: usize,
    /// Long prompts a second
    #[arg(long, default_value_t = 2.0)]
    long_rate: f64,
}

/// An alias that is promoted back and forth.
struct Swapped {
    alias: String,
    /// The generation that it serves, and the other one.
    generations: [String; 2],
}

/// A promotion.
struct Swap {
    /// A question to the alias.
    question: Question,
    /// The generation that it is to name.
    generation: String,
    /// Whether to ask until the generation answers.
    is_followed: bool,
}

/// What happened to the promotions and the long prompts.
#[derive(Default)]
struct Outcomes {
    promoting: Vec<Duration>,
    /// From the call, and from its return, to the first token by the new generation.
    from_call: Vec<Duration>,
    from_return: Vec<Duration>,
    /// Followed promotions without an answer in time.
    missed: usize,
    long_first_token: Vec<Duration>,
    errors: Vec<String>,
}

/// Measures both phases.
pub(crate) async fn run(
    deployment: &Arc<Deployment>,
    prompts: Prompts,
    options: &Options,
) -> Result<()> {
    let swapped = swapped(deployment).await?;
    let prompts = Arc::new(Mutex::new(prompts));
    let (stop, stopped) = watch::channel(false);
    let mut writers = JoinSet::new();
    for n in 0..options.sequences {
        let (deployment, prompts) = (deployment.clone(), prompts.clone());
        let (adapter, stopped) = (asked(n, options.adapters), stopped.clone());
        let lengths = (options.prompt, options.new);
        writers.spawn(write(deployment, prompts, adapter, lengths, stopped));
    }
    tokio::time::sleep(SETTLE).await;
    let quiet = window(options.quiet_seconds).await;
    let loading = load(deployment, &prompts, options, swapped);
    let (outcomes, loaded) = tokio::join!(loading, async {
        tokio::time::sleep(SETTLE).await;
        window(options.loaded_seconds).await
    });
    stop.send_replace(true);
    let mut tokens = Vec::new();
    while let Some(written) = writers.join_next().await {
        tokens.extend(written??);
    }
    let of = |(from, to): (Instant, Instant)| -> Vec<Duration> {
        let inside = tokens.iter().filter(|(at, _)| (from..to).contains(at));
        inside.map(|(_, gap)| *gap).collect()
    };
    let outcomes = outcomes?;
    let speed = |gaps: &[Duration], seconds: f64| gaps.len() as f64 / seconds;
    let (quiet, loaded) = (of(quiet), of(loaded));
    let line = json!({
        "part": "swaps",
        "sequences": options.sequences,
        "adapters": options.adapters,
        "promotions_per_s": options.promotions,
        "long_prompt": options.long_prompt,
        "long_prompts_per_s": options.long_rate,
        "quiet": spread(&quiet),
        "loaded": spread(&loaded),
        "loaded_p99_over_quiet_p50": percentile(&loaded, 99.0) / percentile(&quiet, 50.0),
        "quiet_tokens_per_s": speed(&quiet, options.quiet_seconds),
        "loaded_tokens_per_s": speed(&loaded, options.loaded_seconds),
        "promoting": spread(&outcomes.promoting),
        "first_answer_from_call": spread(&outcomes.from_call),
        "first_answer_from_return": spread(&outcomes.from_return),
        "missed": outcomes.missed,
        "long_to_first_token": spread(&outcomes.long_first_token),
        "errors": outcomes.errors,
    });
    println!("{line}");
    Ok(())
}

async fn window(seconds: f64) -> (Instant, Instant) {
    let from = Instant::now();
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    (from, Instant::now())
}

/// Returns the aliases that have two adapters.
async fn swapped(deployment: &Deployment) -> Result<Vec<Swapped>> {
    let published = deployment.published().await?;
    let served = deployment.served().await?.adapters;
    let other_of = |alias: &str, generation: &str| {
        let now = published.iter().find(|one| one.generation == generation)?;
        let other = published.iter().find(|other| {
            let alias_of = other.recipe_name.split(' ').next();
            alias_of == Some(alias)
                && other.base_precision == now.base_precision
                && other.generation != generation
        })?;
        Some(other.generation.clone())
    };
    let swapped = served.into_iter().filter_map(|served| {
        let other = other_of(&served.alias, &served.generation)?;
        Some(Swapped {
            alias: served.alias,
            generations: [served.generation, other],
        })
    });
    let swapped: Vec<_> = swapped.collect();
    ensure!(
        !swapped.is_empty(),
        "no alias has a second adapter: run `serving adapters`"
    );
    Ok(swapped)
}

/// Asks one question after the other until the stop; returns when each token came, and the time
/// since the last one.
async fn write(
    deployment: Arc<Deployment>,
    prompts: Arc<Mutex<Prompts>>,
    adapter: String,
    (prompt, new): (usize, usize),
    mut stopped: watch::Receiver<bool>,
) -> Result<Vec<(Instant, Duration)>> {
    let mut tokens = Vec::new();
    // The first answers have different lengths, so that the later ones do not begin together.
    let mut length = prompts.lock().rng.random_range(1..=new);
    while !*stopped.borrow() {
        let question = prompts.lock().question(&adapter, prompt, length)?;
        length = new;
        let answer = tokio::select! {
            answer = deployment.ask(&question) => answer?,
            _ = stopped.changed() => break,
        };
        tokens.extend(
            answer
                .times
                .windows(2)
                .map(|pair| (pair[1], pair[1] - pair[0])),
        );
    }
    Ok(tokens)
}

/// Promotes and asks long prompts at a steady rate until the measured time is over, and waits for
/// what it began.
async fn load(
    deployment: &Arc<Deployment>,
    prompts: &Arc<Mutex<Prompts>>,
    options: &Options,
    swapped: Vec<Swapped>,
) -> Result<Outcomes> {
    let outcomes = Arc::new(Mutex::new(Outcomes::default()));
    let end = Instant::now() + SETTLE + Duration::from_secs_f64(options.loaded_seconds);
    let mut tasks = JoinSet::new();
    let (mut promotions, mut long) = (every(options.promotions), every(options.long_rate));
    let mut promoted = 0;
    let over = tokio::time::sleep_until(end.into());
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => break,
            _ = promotions.tick() => {
                let Swapped { alias, generations } = &swapped[promoted % swapped.len()];
                let turn = promoted / swapped.len() + 1;
                let generation = generations[turn % 2].clone();
                let question = prompts.lock().question(alias, options.prompt, 1)?;
                let is_followed = promoted.is_multiple_of(options.followed);
                promoted += 1;
                let (deployment, outcomes) = (deployment.clone(), outcomes.clone());
                tasks.spawn(async move {
                    let swap = Swap { question, generation, is_followed };
                    note(promote(&deployment, &swap, &outcomes).await, &outcomes);
                });
            }
            _ = long.tick() => {
                let question = prompts.lock().question("", options.long_prompt, options.long_new)?;
                let (deployment, outcomes) = (deployment.clone(), outcomes.clone());
                tasks.spawn(async move {
                    let asking = async {
                        let first = deployment.ask(&question).await?.to_first_token();
                        outcomes.lock().long_first_token.extend(first);
                        Ok(())
                    };
                    note(asking.await, &outcomes);
                });
            }
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let outcomes = std::mem::take(&mut *outcomes.lock());
    Ok(outcomes)
}

/// Returns the ticks of a rate a second; none of rate 0.
fn every(rate: f64) -> tokio::time::Interval {
    let period = match rate {
        rate if rate > 0.0 => Duration::from_secs_f64(1.0 / rate),
        _ => Duration::from_secs(1 << 30),
    };
    tokio::time::interval_at(tokio::time::Instant::now() + period, period)
}

fn note(result: Result<()>, outcomes: &Mutex<Outcomes>) {
    if let Err(error) = result {
        outcomes.lock().errors.push(format!("{error:#}"));
    }
}

/// Promotes, and asks until the new generation answers if this promotion is followed.
async fn promote(deployment: &Deployment, swap: &Swap, outcomes: &Mutex<Outcomes>) -> Result<()> {
    let called = Instant::now();
    let promoting = deployment.promote(&swap.question.adapter, &swap.generation);
    promoting.await.context("promoting")?;
    let returned = Instant::now();
    outcomes.lock().promoting.push(returned - called);
    if !swap.is_followed {
        return Ok(());
    }
    let answering = first_answer(deployment, &swap.question, &swap.generation);
    match tokio::time::timeout(PATIENCE, answering).await {
        Ok(token) => {
            let token = token?;
            let mut outcomes = outcomes.lock();
            outcomes.from_call.push(token - called);
            outcomes.from_return.push(token - returned);
        }
        Err(_) => outcomes.lock().missed += 1,
    }
    Ok(())
}

/// Asks until a generation answers; returns when its first token came. A question that another
/// generation answers is cancelled before its first token.
async fn first_answer(
    deployment: &Deployment,
    question: &Question,
    generation: &str,
) -> Result<Instant> {
    loop {
        let mut answer = deployment.open(question).await?;
        answer.next(question).await?;
        if answer.generation == generation {
            while answer.next(question).await? {}
            return answer.times.first().copied().context("no token came");
        }
        drop(answer);
        tokio::time::sleep(POLL).await;
    }
}
