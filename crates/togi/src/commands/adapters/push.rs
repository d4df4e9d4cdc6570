//! `togi adapters push`: an adapter into a model's repository on a hub.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use togi_runtime::store::hub::{Hub, HubRef, Upload, Visibility};

use crate::error::{Error, Result};
use crate::local::portable::Portable;
use crate::session::Session;
use crate::table;

pub(super) const EXAMPLES: &str = "\
Examples:
  HF_TOKEN=hf_... togi adapters push mine hf://OWNER/NAME
  togi adapters push 9b1c04f2 hf://OWNER/NAME --public --message \"Third week\"
  togi adapters push adapters/mine hf://OWNER/NAME --base rinna/japanese-gpt-neox-3.6b

A repository that does not exist is created, private unless --public says otherwise. HF_ENDPOINT names another hub.";

/// The command's options.
#[derive(Debug, Args)]
pub struct Push {
    /// An alias, a generation, at least 8 digits of it, or a PEFT folder
    pub adapter: PathBuf,
    /// The repository: hf://OWNER/NAME[@BRANCH]
    pub repository: String,
    /// Where PEFT finds the base: OWNER/NAME[@REVISION] on a hub [default: where the trainer had
    /// it from]
    #[arg(long, value_name = "PLACE")]
    pub base: Option<String>,
    /// Lets everybody read a repository that is created
    #[arg(long)]
    pub public: bool,
    /// The commit's message [default: the adapter's name]
    #[arg(long, short)]
    pub message: Option<String>,
}

/// The result.
#[derive(Serialize)]
struct Pushed {
    repository: String,
    commit: Option<String>,
    url: Option<String>,
}

impl Push {
    /// Runs the command.
    pub(super) async fn run(self, session: &Session) -> Result<()> {
        let repository = HubRef::parse("repository", &self.repository)?;
        let adapter = Portable::read(&self.adapter, self.base.as_deref(), session).await?;
        if !adapter.base.is_repository() {
            let reason = format!(
                "its base is {:?}, which nobody can load from a hub: name the base's repository \
                 with --base OWNER/NAME",
                adapter.base.name
            );
            return Err(Error::unfit("adapter", self.adapter, reason));
        }
        let named = match adapter.generation {
            Some(generation) => format!("Upload adapter {generation}"),
            None => format!("Upload {}", self.adapter.display()),
        };
        let at = format!("{}/{}", repository.owner, repository.name);
        let upload = Upload {
            files: adapter.files_at(&at)?.into_iter().collect(),
            message: self.message.unwrap_or(named),
            visibility: match self.public {
                true => Visibility::Public,
                false => Visibility::Private,
            },
        };
        let hub = Hub::from_environment()?;
        let published = hub.publish(&repository, upload).await?;
        let pushed = Pushed {
            repository: repository.to_string(),
            commit: published.commit,
            url: published.url,
        };
        session.output.one(&pushed, |pushed| {
            table::fields(&[
                ("repository", pushed.repository.clone()),
                ("commit", pushed.commit.clone().unwrap_or_default()),
                ("url", pushed.url.clone().unwrap_or_default()),
            ])
        })
    }
}
