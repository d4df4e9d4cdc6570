//! `togi fetch`: a base's files onto this machine before anything needs them; without services.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use togi_runtime::config::BaseConfig;
use togi_runtime::store::folder;

use crate::error::Result;
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi fetch hf://rinna/japanese-gpt-neox-3.6b
  HF_HOME=/models togi fetch hf://rinna/japanese-gpt-neox-3.6b
  togi fetch s3://models/rinna --cache /var/cache/togi/bases

A hub's files go into its own cache, below HF_HOME, where services find them. Existing files are not
fetched again.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Fetch {
    /// The base: hf://OWNER/NAME[@REVISION], or an object store's URL
    pub url: String,
    /// Where an object store's files go [default: the system's temporary folder, as for the
    /// services]
    #[arg(long, value_name = "FOLDER")]
    pub cache: Option<PathBuf>,
}

/// The result.
#[derive(Serialize)]
struct Fetched {
    folder: PathBuf,
}

impl Fetch {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let base = BaseConfig {
            url: self.url,
            options: BTreeMap::new(),
            precision: None,
        };
        let cache = self
            .cache
            .unwrap_or_else(|| std::env::temp_dir().join("togi-bases"));
        let folder = folder::materialize(&base, &cache).await?.folder;
        let fetched = Fetched { folder };
        session.output.one(&fetched, |fetched| {
            vec![fetched.folder.display().to_string()]
        })
    }
}
