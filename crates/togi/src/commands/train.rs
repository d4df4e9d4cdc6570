//! `togi train`: a data set in, an adapter out.

mod local;
pub(crate) mod remote;

use std::path::PathBuf;

use clap::Args;
use togi_proto::trainer::v1::CreateJobRequest;

use crate::error::{Error, Result};
use crate::local::named::Named;
use crate::local::on_thread;
use crate::session::Session;
use crate::{embedded, recipe};

const EXAMPLES: &str = "\
Examples:
  togi train --recipe demo-cpu --dataset mine --alias mine
  togi train --recipe my-recipe.toml --base rinna --dataset dolly-ja --alias dolly --no-watch
  togi train --recipe demo-cpu --dataset mine --alias mine --dry-run      only check and plan the memory
  togi train --recipe demo-cpu --dataset mine --alias mine --watch -o json | jq .step.loss
  togi train --local --recipe my-recipe.toml --base models/mine --records records.jsonl --out adapters/mine";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Train {
    /// A recipe's file, or one of demo-cpu, rinna-3.6b-article, rinna-3.6b-a100, rinna-3.6b-bf16
    #[arg(long, short, value_name = "FILE")]
    pub recipe: PathBuf,
    /// The base, by its name in the trainer's configuration; with --local its folder
    #[arg(long, value_name = "NAME", default_value = embedded::BASE)]
    pub base: String,
    /// A data set's name, for its newest revision, or its digest
    #[arg(long, short, value_name = "NAME", required_unless_present = "local")]
    pub dataset: Option<String>,
    /// The alias that the adapter is promoted to
    #[arg(long, short, value_name = "NAME", required_unless_present = "local")]
    pub alias: Option<String>,
    /// The same key and request give the same job
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Whether to follow the job.
    #[command(flatten)]
    pub follow: remote::Follow,
    /// Only checks the request and plans its memory
    #[arg(long)]
    pub dry_run: bool,
    /// The options of a training without services.
    #[command(flatten)]
    pub local: local::Local,
}

impl Train {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = &session.output;
        if self.local.local {
            let init = match &self.local.init_adapter {
                Some(name) => Some(Named::find(name, session).await?),
                None => None,
            };
            let training = local::Training {
                recipe: self.recipe,
                base: self.base.into(),
                device: session.settings.device,
                init,
                options: self.local,
            };
            let output = output.clone();
            return on_thread(move || training.work(&output)).await;
        }
        if self.local.reading.is_said() {
            let text = "--format and --column go with --local: a data set was read before";
            return Err(Error::Usage(text.to_owned()));
        }
        let request = CreateJobRequest {
            base: self.base,
            dataset: self.dataset.unwrap_or_default(),
            recipe: Some(recipe::recipe(&self.recipe)?),
            alias: self.alias.unwrap_or_default(),
            idempotency_key: self.idempotency_key.unwrap_or_default(),
            validate_only: self.dry_run,
            ..CreateJobRequest::default()
        };
        let answer = remote::create(session, request).await?;
        if self.dry_run {
            return output.one(&answer, |answer| {
                vec![format!("the request is valid: {} steps", answer.steps)]
            });
        }
        self.follow.end(session, answer).await
    }
}
