//! The report of a pipeline, stage by stage, also of one that failed.

use std::time::Instant;

use serde::Serialize;
use togi_proto::dataprep::v1::Dataset;
use togi_proto::events::v1::AdapterEvaluated;
use togi_proto::job::v1::{Job, JobState};
use togi_proto::trainer::v1::Alias;

use crate::client::succeeded;
use crate::error::{Error, Result};

/// A part of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Records to a data set.
    Prepare,
    /// A data set to an adapter.
    Train,
    /// The gate's measurements and verdict.
    Evaluate,
    /// The promotion to the alias.
    Publish,
}

impl Stage {
    /// The stages in their order.
    pub const ALL: [Stage; 4] = [Self::Prepare, Self::Train, Self::Evaluate, Self::Publish];

    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Publish => "publish",
        }
    }
}

/// The outcome of a stage or of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It succeeded.
    Passed,
    /// The gate refused the adapter.
    Refused,
    /// It failed.
    Failed,
    /// It was not reached.
    Skipped,
}

/// A stage that was reached.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// Which.
    pub stage: Stage,
    /// Its outcome.
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: f64,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The report of a pipeline. Its messages are in proto3's JSON.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// Its outcome.
    pub outcome: Outcome,
    /// The command's exit code.
    pub exit_code: u8,
    /// How long it took.
    pub seconds: f64,
    /// The stages in their order.
    pub stages: Vec<Done>,
    /// The data set that was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Dataset>,
    /// The training job as it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// What the gate measured and decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<AdapterEvaluated>,
    /// The alias, if it names the new adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
    #[serde(skip)]
    started: Instant,
    /// When the current stage began.
    #[serde(skip)]
    since: Instant,
    /// When the last step was done.
    #[serde(skip)]
    trained: Option<Instant>,
}

impl Report {
    /// Starts the report of a pipeline.
    #[must_use]
    pub fn new(pipeline: &str) -> Self {
        let now = Instant::now();
        Self {
            pipeline: pipeline.to_owned(),
            outcome: Outcome::Skipped,
            exit_code: 0,
            seconds: 0.0,
            stages: Vec::new(),
            dataset: None,
            job: None,
            evaluation: None,
            alias: None,
            started: now,
            since: now,
            trained: None,
        }
    }

    /// Runs a stage and records its outcome. For a training it records only a failure to start:
    /// [`Report::judge`] records the rest.
    ///
    /// # Errors
    /// The work's.
    pub async fn stage<T>(
        &mut self,
        stage: Stage,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.since = Instant::now();
        let outcome = work.await;
        match &outcome {
            Ok(_) if stage == Stage::Train => {}
            Ok(_) => self.note(
                stage,
                Outcome::Passed,
                self.since.elapsed().as_secs_f64(),
                None,
            ),
            Err(error) => {
                let seconds = self.since.elapsed().as_secs_f64();
                self.note(stage, Outcome::Failed, seconds, Some(error.to_string()));
            }
        }
        outcome
    }

    /// Records that the last step is done.
    pub fn trained(&mut self) {
        self.trained = Some(Instant::now());
    }

    /// Records the outcomes of training and evaluation from the finished job.
    ///
    /// # Errors
    /// The job's failure, or its gate's refusal.
    pub fn judge(&mut self) -> Result<()> {
        let job = self.job.clone().unwrap_or_default();
        let trained = self.trained.unwrap_or_else(Instant::now);
        let training = trained.duration_since(self.since).as_secs_f64();
        let evaluating = trained.elapsed().as_secs_f64();
        let judged = succeeded(job.clone()).map(drop);
        let refused = is_refused(&job);
        match &judged {
            Err(error) if !refused => {
                let message = Some(error.to_string());
                self.note(
                    Stage::Train,
                    Outcome::Failed,
                    training + evaluating,
                    message,
                );
            }
            judged => {
                self.note(Stage::Train, Outcome::Passed, training, None);
                let (outcome, message) = match judged {
                    Ok(()) => (Outcome::Passed, None),
                    Err(error) => (Outcome::Refused, Some(error.to_string())),
                };
                self.note(Stage::Evaluate, outcome, evaluating, message);
            }
        }
        judged
    }

    /// Finishes the report: stages that were not reached are skipped.
    pub fn finish(&mut self, outcome: &Result<()>) {
        self.seconds = self.started.elapsed().as_secs_f64();
        self.exit_code = outcome.as_ref().map_or_else(Error::exit_code, |()| 0);
        // A failure between two stages counts for the next one.
        if let Err(error) = outcome
            && self
                .stages
                .iter()
                .all(|done| done.outcome == Outcome::Passed)
            && let Some(next) = Stage::ALL.get(self.stages.len())
        {
            let seconds = self.since.elapsed().as_secs_f64();
            self.note(*next, Outcome::Failed, seconds, Some(error.to_string()));
        }
        self.outcome = match self.stages.last() {
            Some(last) => last.outcome,
            None => Outcome::Skipped,
        };
        for stage in Stage::ALL.into_iter().skip(self.stages.len()) {
            self.note(stage, Outcome::Skipped, 0.0, None);
        }
    }

    fn note(&mut self, stage: Stage, outcome: Outcome, seconds: f64, message: Option<String>) {
        self.stages.push(Done {
            stage,
            outcome,
            seconds,
            message,
        });
    }

    /// Returns the job's generation, also of an adapter that the gate refused.
    #[must_use]
    pub fn generation(&self) -> &str {
        let made = self.job.as_ref().map(|job| job.result.as_str());
        made.unwrap_or_default()
    }
}

/// Whether the gate refused what the job made.
fn is_refused(job: &Job) -> bool {
    job.state() == JobState::Succeeded && !job.refusal.is_empty()
}
