//! `togi policies`: when a data set has a new revision, train and promote.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use togi_proto::trainer::v1::{
    ApplyPolicyRequest, DeletePolicyRequest, GetPolicyRequest, ListPoliciesRequest, Policy,
};

use super::Session;
use crate::{
    client::present,
    error::Result,
    recipe,
    table::{self, Table},
};

const APPLY_EXAMPLES: &str = "\
Examples:
  togi policies apply retrain.toml

A policy file is complete:
  name = \"retrain-mine\"
  dataset = \"mine\"          # when this data set has a new revision
  base = \"demo\"             # train from this base
  alias = \"mine\"            # and promote to this alias
  [recipe]                  # by this recipe: the fields of a recipe file
  epochs = 20
  [recipe.lora]
  rank = 8";

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

/// Names a policy.
#[derive(Debug, Args)]
pub struct One {
    /// Its name
    pub policy: String,
}

impl Policies {
    /// Runs the command.
    pub(super) async fn run(self, session: &Session) -> Result<()> {
        let output = &session.output;
        let mut client = session.clients.policies().await?;
        match self {
            Policies::Apply(apply) => {
                let request = ApplyPolicyRequest {
                    policy: Some(recipe::policy(&apply.file)?),
                };
                let answer = client.apply_policy(request).await?.into_inner();
                let policy = present(answer.policy.as_ref(), "policy")?.clone();
                output.one(&answer, |answer| fields(&policy, answer.version))
            }
            Policies::List => {
                let answer = client
                    .list_policies(ListPoliciesRequest {})
                    .await?
                    .into_inner();
                if answer.policies.is_empty() {
                    output.say("no policies yet; `togi policies apply` keeps one");
                }
                output.one(&answer, |answer| list(&answer.policies))
            }
            Policies::Show(one) => {
                let answer = client
                    .get_policy(GetPolicyRequest { name: one.policy })
                    .await?
                    .into_inner();
                let policy = present(answer.policy.as_ref(), "policy")?.clone();
                output.one(&answer, |answer| fields(&policy, answer.version))
            }
            Policies::Delete(one) => {
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
    let mut table = Table::new(&["NAME", "DATASET", "BASE", "RECIPE", "ALIAS"]);
    for policy in policies {
        let recipe = policy
            .recipe
            .as_ref()
            .map(|recipe| recipe.name.clone())
            .unwrap_or_default();
        table.row([
            policy.name.clone(),
            policy.dataset.clone(),
            policy.base.clone(),
            recipe,
            policy.alias.clone(),
        ]);
    }
    if table.is_empty() {
        Vec::new()
    } else {
        table.lines()
    }
}

fn fields(policy: &Policy, version: u64) -> Vec<String> {
    let recipe = policy
        .recipe
        .as_ref()
        .map(|recipe| recipe.name.clone())
        .unwrap_or_default();
    table::fields(&[
        ("name", policy.name.clone()),
        ("version", version.to_string()),
        ("dataset", policy.dataset.clone()),
        ("base", policy.base.clone()),
        ("recipe", recipe),
        ("alias", policy.alias.clone()),
    ])
}
