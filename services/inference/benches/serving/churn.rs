//! Many answers of random lengths, some of which their clients leave: pages of keys and values in
//! use afterwards, memory grown, and whether anybody got another's answer.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;

use crate::deployment::{Deployment, Question};
use crate::prompts::{Prompts, asked};

/// Questions whose answers are known before.
const KNOWN: usize = 8;
/// One in this many requests is one of them.
const KNOWN_EVERY: usize = 10;
/// Time until a refused request is sent again.
const COME_BACK: Duration = Duration::from_millis(20);

/// The options of `serving churn`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Sequences; as many more before the first look at the memory
    #[arg(long, default_value_t = 1000)]
    sequences: usize,
    /// Requests under way together
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    /// Adapters that they are spread over
    #[arg(long, default_value_t = 64)]
    adapters: usize,
    /// Most tokens of a prompt
    #[arg(long, default_value_t = 200)]
    prompt: usize,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 256)]
    new: usize,
    /// The part of the requests that is cancelled, at a random token
    #[arg(long, default_value_t = 0.3)]
    cancelled: f64,
    /// The process of inference on this machine, for its memory
    #[arg(long)]
    pid: Option<u32>,
}

/// A question, and what becomes of it.
struct Fate {
    question: Question,
    /// Tokens after which the client leaves.
    leaves_after: Option<usize>,
    /// The whole answer, if it is known.
    expected: Option<Arc<[u32]>>,
}

#[derive(Default)]
struct Counts {
    /// Times that a request was refused, because all places were taken.
    refused: usize,
    finished: usize,
    cancelled: usize,
    tokens: usize,
    /// Answers that begin otherwise than the known one.
    wrong: usize,
}

/// Memory of the server's process and of its GPU.
struct Memory {
    resident_mib: Option<f64>,
    device_mib: Option<f64>,
}

/// Runs all sequences twice, and compares the memory after each time.
pub(crate) async fn run(
    deployment: &Arc<Deployment>,
    mut prompts: Prompts,
    options: &Options,
) -> Result<()> {
    let known = known(deployment, &mut prompts, options).await?;
    let mut churn = async || {
        let fates = (0..options.sequences).map(|n| fate(n, &mut prompts, &known, options));
        let fates: Vec<Fate> = fates.collect::<Result<_>>()?;
        let counts = ask_all(deployment, fates, options.at_once).await?;
        deployment.until_idle().await?;
        let pages = (
            deployment.gauge("togi_inference_pages_used").await?,
            deployment.gauge("togi_inference_pages_free").await?,
        );
        anyhow::Ok((counts, pages, Memory::of(options.pid)?))
    };
    let (first, (_, free_before), before) = churn().await?;
    let (second, (used, free), after) = churn().await?;
    let grown = |before: Option<f64>, after: Option<f64>| Some(after? - before?);
    let line = json!({
        "part": "churn",
        "sequences": options.sequences,
        "at_once": options.at_once,
        "adapters": options.adapters,
        "refused": second.refused,
        "finished": second.finished,
        "cancelled": second.cancelled,
        "tokens": second.tokens,
        "others_answers": first.wrong + second.wrong,
        "pages_used_after": used,
        "pages_lost": free_before - free,
        "resident_mib": after.resident_mib,
        "resident_grown_mib": grown(before.resident_mib, after.resident_mib),
        "device_mib": after.device_mib,
        "device_grown_mib": grown(before.device_mib, after.device_mib),
    });
    println!("{line}");
    ensure!(first.wrong + second.wrong == 0, "some got another's answer");
    Ok(())
}

/// Asks some questions alone, so that their answers are known.
async fn known(
    deployment: &Deployment,
    prompts: &mut Prompts,
    options: &Options,
) -> Result<Vec<(Question, Arc<[u32]>)>> {
    let mut known = Vec::new();
    for n in 0..KNOWN {
        let adapter = asked(n, options.adapters);
        let prompt = prompts.rng.random_range(1..=options.prompt);
        let question = prompts.question(&adapter, prompt, options.new)?;
        let answer = deployment.ask(&question).await?;
        known.push((question, answer.ids.into()));
    }
    Ok(known)
}

fn fate(
    n: usize,
    prompts: &mut Prompts,
    known: &[(Question, Arc<[u32]>)],
    options: &Options,
) -> Result<Fate> {
    let (question, expected) = if n.is_multiple_of(KNOWN_EVERY) {
        let (question, answer) = &known[n / KNOWN_EVERY % known.len()];
        (question.clone(), Some(answer.clone()))
    } else {
        let prompt = prompts.rng.random_range(1..=options.prompt);
        let new = prompts.rng.random_range(1..=options.new);
        let question = prompts.question(&asked(n, options.adapters), prompt, new)?;
        (question, None)
    };
    let leaves = prompts.rng.random_bool(options.cancelled);
    Ok(Fate {
        leaves_after: leaves.then(|| prompts.rng.random_range(0..question.new)),
        question,
        expected,
    })
}

async fn ask_all(deployment: &Arc<Deployment>, fates: Vec<Fate>, at_once: usize) -> Result<Counts> {
    let places = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    for fate in fates {
        let place = places.clone().acquire_owned().await?;
        let deployment = deployment.clone();
        tasks.spawn(async move {
            let counts = live(&deployment, fate).await;
            drop(place);
            counts
        });
    }
    let mut all = Counts::default();
    while let Some(counts) = tasks.join_next().await {
        let counts = counts??;
        all.refused += counts.refused;
        all.finished += counts.finished;
        all.cancelled += counts.cancelled;
        all.tokens += counts.tokens;
        all.wrong += counts.wrong;
    }
    Ok(all)
}

async fn live(deployment: &Deployment, fate: Fate) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut answer = loop {
        match deployment.open(&fate.question).await {
            Ok(answer) => break answer,
            // Those whose clients left have their places until the round is over.
            Err(status) if status.code() == Code::ResourceExhausted => {
                counts.refused += 1;
                tokio::time::sleep(COME_BACK).await;
            }
            Err(status) => return Err(status.into()),
        }
    };
    loop {
        if fate
            .leaves_after
            .is_some_and(|tokens| answer.ids.len() >= tokens)
        {
            counts.cancelled = 1;
            break;
        }
        if !answer.next(&fate.question).await? {
            counts.finished = 1;
            break;
        }
    }
    counts.tokens = answer.ids.len();
    let is_wrong = |expected: &Arc<[u32]>| !expected.starts_with(&answer.ids);
    counts.wrong = fate.expected.as_ref().is_some_and(is_wrong).into();
    Ok(counts)
}

impl Memory {
    fn of(pid: Option<u32>) -> Result<Self> {
        Ok(Self {
            resident_mib: pid.map(resident).transpose()?,
            device_mib: device(),
        })
    }
}

/// Returns a process's resident memory in MiB.
fn resident(pid: u32) -> Result<f64> {
    let path = Path::new("/proc").join(pid.to_string()).join("status");
    let text = std::fs::read_to_string(path).context("--pid")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("--pid: no VmRSS")?.parse::<f64>()? / 1024.0)
}

/// Returns the memory in use on the first GPU in MiB; `None` without one.
fn device() -> Option<f64> {
    let asked = Command::new("nvidia-smi")
        .args(["--query-gpu=memory.used", "--format=csv,noheader,nounits"])
        .output();
    String::from_utf8(asked.ok()?.stdout)
        .ok()?
        .lines()
        .next()?
        .trim()
        .parse()
        .ok()
}
