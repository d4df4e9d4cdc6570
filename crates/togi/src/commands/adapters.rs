//! `togi adapters`: the registry, and what a replica serves of it.

use clap::{Args, Subcommand};
use togi_proto::inference::v1 as inference;
use togi_proto::trainer::v1::{
    Adapter, Alias, GetAdapterRequest, ListAdaptersRequest, ListAdaptersResponse,
    ListAliasesRequest, PromoteAdapterRequest, RollbackAliasRequest,
};

use crate::client::{PAGE_SIZE, present};
use crate::error::Result;
use crate::progress::mebibytes;
use crate::session::Session;
use crate::table::{Table, shorten};
use crate::{table, when};

mod pull;
mod push;

const PROMOTE_EXAMPLES: &str = "\
Examples:
  togi adapters promote 9b1c04f2 --alias mine
  togi adapters promote 9b1c04f2 --alias mine --allow-base-mismatch    serve over f32 what was trained over nf4

Whether a mismatch matters is measured: `togi events adapter.loaded` has the difference.";

/// What to do with adapters.
#[derive(Debug, Subcommand)]
pub enum Adapters {
    /// Lists published adapters, newest first
    #[command(before_help = "Examples:\n  togi adapters list")]
    List,
    /// Shows an adapter
    #[command(before_help = "Examples:\n  togi adapters show mine\n  togi adapters show 9b1c04f2")]
    Show(One),
    /// Points an alias to a generation
    #[command(before_help = PROMOTE_EXAMPLES)]
    Promote(Promote),
    /// Points an alias back to its previous generation
    #[command(before_help = "Examples:\n  togi adapters rollback mine")]
    Rollback(Rollback),
    /// Writes a published adapter as a PEFT folder
    #[command(before_help = pull::EXAMPLES)]
    Pull(pull::Pull),
    /// Puts an adapter into a model's repository on a hub
    #[command(before_help = push::EXAMPLES)]
    Push(push::Push),
    /// Lists aliases and the generations that they name
    #[command(before_help = "Examples:\n  togi adapters aliases")]
    Aliases,
    /// Lists what the inference replica serves, and what it refused
    #[command(before_help = "Examples:\n  togi adapters served")]
    Served,
}

/// Names an adapter.
#[derive(Debug, Args)]
pub struct One {
    /// A generation, at least 8 digits of it, or an alias
    pub adapter: String,
}

/// Names an adapter and an alias.
#[derive(Debug, Args)]
pub struct Promote {
    /// A generation, or at least 8 digits of it
    pub generation: String,
    /// The alias
    #[arg(long, short)]
    pub alias: String,
    /// Also serves it over a base in another precision than in training
    #[arg(long)]
    pub allow_base_mismatch: bool,
}

/// Names an alias.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The alias
    pub alias: String,
}

impl Adapters {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = &session.output;
        match self {
            Self::List => list(session).await,
            Self::Show(one) => output.one(&get(session, one.adapter).await?, fields),
            Self::Promote(promote) => {
                let generation = get(session, promote.generation).await?.generation;
                let request = PromoteAdapterRequest {
                    alias: promote.alias,
                    generation,
                    allow_base_mismatch: promote.allow_base_mismatch,
                };
                let answer = session
                    .clients
                    .adapters()
                    .await?
                    .promote_adapter(request)
                    .await?
                    .into_inner();
                output.one(&present(answer.alias, "alias")?, alias_fields)
            }
            Self::Rollback(rollback) => {
                let request = RollbackAliasRequest {
                    alias: rollback.alias,
                };
                let answer = session
                    .clients
                    .adapters()
                    .await?
                    .rollback_alias(request)
                    .await?
                    .into_inner();
                output.one(&present(answer.alias, "alias")?, alias_fields)
            }
            Self::Pull(pull) => pull.run(session).await,
            Self::Push(push) => push.run(session).await,
            Self::Aliases => aliases(session).await,
            Self::Served => served(session).await,
        }
    }
}

async fn get(session: &Session, adapter: String) -> Result<Adapter> {
    let answer = session
        .clients
        .adapters()
        .await?
        .get_adapter(GetAdapterRequest { adapter })
        .await?;
    present(answer.into_inner().adapter, "adapter")
}

async fn list(session: &Session) -> Result<()> {
    let mut client = session.clients.adapters().await?;
    let mut all = ListAdaptersResponse::default();
    loop {
        let request = ListAdaptersRequest {
            page_size: PAGE_SIZE,
            page_token: all.next_page_token,
        };
        let page = client.list_adapters(request).await?.into_inner();
        all.adapters.extend(page.adapters);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            break;
        }
    }
    if all.adapters.is_empty() {
        session
            .output
            .say("no adapters yet; `togi train` makes one");
    }
    session.output.one(&all, |all| {
        let mut table = Table::new(&[
            "GENERATION",
            "ALIASES",
            "RECIPE",
            "RANK",
            "SIZE",
            "AGE",
            "JOB",
        ]);
        for adapter in &all.adapters {
            table.row([
                shorten(&adapter.generation, 17),
                adapter.aliases.join(","),
                adapter.recipe_name.clone(),
                adapter.rank.to_string(),
                mebibytes(adapter.size_bytes),
                when::age(adapter.create_time.as_ref()),
                adapter.job.clone(),
            ]);
        }
        table.lines()
    })
}

async fn aliases(session: &Session) -> Result<()> {
    let answer = session
        .clients
        .adapters()
        .await?
        .list_aliases(ListAliasesRequest {})
        .await?
        .into_inner();
    if answer.aliases.is_empty() {
        session.output.say("no aliases yet");
    }
    session.output.one(&answer, |answer| {
        let mut table = Table::new(&["ALIAS", "REVISION", "AGE", "GENERATION", "BASE"]);
        for alias in &answer.aliases {
            let age = when::age(alias.update_time.as_ref());
            table.row([
                alias.name.clone(),
                alias.revision.to_string(),
                age,
                alias.generation.clone(),
                base_rule(alias).into(),
            ]);
        }
        table.lines()
    })
}

async fn served(session: &Session) -> Result<()> {
    let request = inference::ListAdaptersRequest {};
    let answer = session
        .clients
        .inference()
        .await?
        .list_adapters(request)
        .await?
        .into_inner();
    session.output.say(format_args!(
        "{} serves base {}",
        answer.replica,
        shorten(&answer.base_digest, 17)
    ));
    session.output.one(&answer, |answer| {
        let mut table = Table::new(&["ALIAS", "GENERATION", "STATE", "SINCE", "REASON"]);
        for adapter in &answer.adapters {
            let since = when::age(adapter.load_time.as_ref());
            let generation = shorten(&adapter.generation, 17);
            table.row([
                adapter.alias.clone(),
                generation,
                "served".into(),
                since,
                String::new(),
            ]);
        }
        for adapter in &answer.rejected {
            let generation = shorten(&adapter.generation, 17);
            let reason = adapter.reason.clone();
            table.row([
                adapter.alias.clone(),
                generation,
                "refused".into(),
                String::new(),
                reason,
            ]);
        }
        table.lines()
    })
}

fn fields(adapter: &Adapter) -> Vec<String> {
    table::fields(&[
        ("generation", adapter.generation.clone()),
        ("aliases", adapter.aliases.join(", ")),
        ("recipe", adapter.recipe_name.clone()),
        ("rank", adapter.rank.to_string()),
        ("alpha", adapter.alpha.to_string()),
        ("modules", adapter.target_modules.join(", ")),
        ("size", mebibytes(adapter.size_bytes)),
        ("base", adapter.base_digest.clone()),
        ("base precision", adapter.base_precision.clone()),
        ("tokenizer", adapter.tokenizer_digest.clone()),
        ("dataset", adapter.dataset.clone()),
        ("recipe digest", adapter.recipe_digest.clone()),
        ("job", adapter.job.clone()),
        ("published", when::local(adapter.create_time.as_ref())),
    ])
}

fn alias_fields(alias: &Alias) -> Vec<String> {
    table::fields(&[
        ("alias", alias.name.clone()),
        ("generation", alias.generation.clone()),
        ("revision", alias.revision.to_string()),
        ("base", base_rule(alias).into()),
        ("since", when::local(alias.update_time.as_ref())),
    ])
}

fn base_rule(alias: &Alias) -> &'static str {
    if alias.allow_base_mismatch {
        "any precision"
    } else {
        "as trained"
    }
}
