//! `togi policies`: retraining at a new revision of a data set or on a schedule, with promotion of
//! adapters that pass the gate.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use togi_proto::trainer::v1::{
    ApplyPolicyRequest, CreateJobRequest, DeletePolicyRequest, GetPolicyRequest,
    ListPoliciesRequest, Policy,
};

use crate::client::present;
use crate::commands::train::remote::{self, Follow};
use crate::error::Result;
use crate::session::Session;
use crate::table::Table;
use crate::{recipe, table, upload};

const APPLY_EXAMPLES: &str = "\
Examples:
  togi policies apply retrain.toml

A policy file says what is trained, when, and what it must pass:
  name = \"retrain-mine\"
  dataset = \"mine\"                    # prepared with a --validation-share, for the gate
  base = \"demo\"                       # train from this base
  recipe = \"demo-cpu\"                 # a name, a file, or the table [recipe]
  alias = \"mine\"                      # and promote to this alias
  [trigger]                           # left out: at every new revision of the data set
  schedule = \"30 3 * * * Asia/Tokyo\"  # cron's five fields and a time zone [UTC]
  [gate]                              # left out: the held-out loss alone, with this tolerance
  loss_tolerance = 0.05               # the most above the serving generation's
  questions = \"questions.jsonl\"       # lines of instruction, output and optional input
  answer_tolerance = 0.05             # the most that the share of right answers may fall
  least_right = 0.8                   # the least share, whatever is served";

const RUN_EXAMPLES: &str = "\
Examples:
  togi policies run retrain-mine
  togi policies run retrain-mine --watch     and exit with 5 if the gate refuses the adapter

The same by any NATS client:
  nats pub togi.jobs.train '{\"policy\": \"retrain-mine\"}'";

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub enum Policies {
    /// Creates a policy or its next version
    #[command(before_help = APPLY_EXAMPLES)]
    Apply(Apply),
    /// Lists policies by name
    #[command(before_help = "Examples:\n  togi policies list")]
    List,
    /// Shows a policy
    #[command(before_help = "Examples:\n  togi policies show retrain-mine -o json")]
    Show(One),
    /// Trains by a policy now, on its data set's newest revision
    #[command(before_help = RUN_EXAMPLES)]
    Run(Run),
    /// Ends a policy
    #[command(before_help = "Examples:\n  togi policies delete retrain-mine")]
    Delete(One),
}

/// Names a policy file.
#[derive(Debug, Args)]
pub struct Apply {
    /// The policy: the TOML form of togi.trainer.v1.Policy
    pub file: PathBuf,
}

/// Names a policy to train by.
#[derive(Debug, Args)]
pub struct Run {
    /// Its name
    pub policy: String,
    /// The same key and policy give the same job
    #[arg(
        long,
        value_name = "KEY",
        default_value = "",
        hide_default_value = true
    )]
    pub idempotency_key: String,
    /// Whether to follow the job.
    #[command(flatten)]
    pub follow: Follow,
}

/// Names a policy.
#[derive(Debug, Args)]
pub struct One {
    /// Its name
    pub policy: String,
}

impl Policies {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = &session.output;
        let mut client = session.clients.policies().await?;
        match self {
            Self::Apply(apply) => {
                let mut policy = recipe::policy(&apply.file)?;
                if let Some(gate) = &mut policy.gate {
                    let folder = apply.file.parent().unwrap_or(Path::new(""));
                    upload::questions(&session.clients, output, folder, gate).await?;
                }
                let request = ApplyPolicyRequest {
                    policy: Some(policy),
                };
                let answer = client.apply_policy(request).await?.into_inner();
                let policy = present(answer.policy.as_ref(), "policy")?.clone();
                output.one(&answer, |answer| fields(&policy, answer.version))
            }
            Self::List => {
                let answer = client
                    .list_policies(ListPoliciesRequest {})
                    .await?
                    .into_inner();
                if answer.policies.is_empty() {
                    output.say("no policies yet; `togi policies apply` keeps one");
                }
                output.one(&answer, |answer| list(&answer.policies))
            }
            Self::Show(one) => {
                let answer = client
                    .get_policy(GetPolicyRequest { name: one.policy })
                    .await?
                    .into_inner();
                let policy = present(answer.policy.as_ref(), "policy")?.clone();
                output.one(&answer, |answer| fields(&policy, answer.version))
            }
            Self::Run(run) => {
                let request = CreateJobRequest {
                    policy: run.policy,
                    idempotency_key: run.idempotency_key,
                    ..CreateJobRequest::default()
                };
                let answer = remote::ask(session, request).await?;
                run.follow.end(session, answer).await
            }
            Self::Delete(one) => {
                client
                    .delete_policy(DeletePolicyRequest {
                        name: one.policy.clone(),
                    })
                    .await?;
                output.say(format_args!("{} is gone", one.policy));
                Ok(())
            }
        }
    }
}

fn list(policies: &[Policy]) -> Vec<String> {
    let mut table = Table::new(&["NAME", "DATASET", "BASE", "RECIPE", "ALIAS", "TRAINS"]);
    for policy in policies {
        table.row([
            policy.name.clone(),
            policy.dataset.clone(),
            policy.base.clone(),
            recipe_name(policy),
            policy.alias.clone(),
            trains(policy),
        ]);
    }
    table.lines()
}

fn fields(policy: &Policy, version: u64) -> Vec<String> {
    table::fields(&[
        ("name", policy.name.clone()),
        ("version", version.to_string()),
        ("dataset", policy.dataset.clone()),
        ("base", policy.base.clone()),
        ("recipe", recipe_name(policy)),
        ("alias", policy.alias.clone()),
        ("trains", trains(policy)),
        ("gate", gate(policy)),
    ])
}

fn recipe_name(policy: &Policy) -> String {
    let recipe = policy.recipe.as_ref();
    recipe.map(|recipe| recipe.name.clone()).unwrap_or_default()
}

/// Describes when a policy trains.
fn trains(policy: &Policy) -> String {
    let trigger = policy.trigger.clone().unwrap_or_default();
    let revisions = trigger.new_revision.unwrap_or_default();
    match (revisions, trigger.schedule.as_str()) {
        (true, "") => "at new revisions".to_owned(),
        (true, schedule) => format!("at new revisions and at {schedule}"),
        (false, "") => "when asked".to_owned(),
        (false, schedule) => format!("at {schedule}"),
    }
}

/// Describes a policy's gate.
fn gate(policy: &Policy) -> String {
    let gate = policy.gate.clone().unwrap_or_default();
    let loss = gate.loss_tolerance.unwrap_or_default();
    let mut said = format!("held-out loss at most {loss} above the serving generation's");
    if !gate.questions.is_empty() {
        let below = gate.answer_tolerance.unwrap_or_default();
        said += &format!(
            "; right answers at most {below} below, of the questions {}",
            table::shorten(&gate.questions, 13)
        );
    }
    if let Some(least) = gate.least_right.filter(|least| *least > 0.0) {
        said += &format!("; at least {least} right");
    }
    said
}
