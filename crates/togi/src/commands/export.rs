//! `togi export`: a base and an adapter in, one base out that needs no adapter; without services.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use togi_model::{DeviceName, Precision, merge};

use crate::error::Result;
use crate::local;
use crate::local::named::Named;
use crate::local::tokenizer_files::TokenizerFiles;
use crate::output::Output;
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi export --merged --base models/mine --adapter adapters/mine --out models/merged
  togi export --merged --base models/mine --adapter mine --out models/merged    the alias of running services

The folder is in Hugging Face layout, in 32-bit floats. transformers 4.57 and 5 load it with the Auto
classes, and with the ids of the base's SentencePiece model.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Export {
    /// Adds the adapter to the base's weights
    #[arg(long, required = true)]
    pub merged: bool,
    /// A base's folder
    #[arg(long, value_name = "FOLDER")]
    pub base: PathBuf,
    /// A PEFT folder, or of the services an alias, a generation, or at least 8 digits of it
    #[arg(long, short, value_name = "NAME")]
    pub adapter: PathBuf,
    /// The folder to write, new or empty
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
}

/// The result.
#[derive(Serialize)]
struct Written {
    folder: PathBuf,
}

impl Export {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = session.output.clone();
        let adapter = Named::find(&self.adapter, session).await?;
        local::on_thread(move || self.work(&adapter, &output)).await
    }

    fn work(self, adapter: &Named, output: &Output) -> Result<()> {
        let loaded = local::base(&self.base, DeviceName::Cpu, Precision::F32)?;
        let lora = adapter.lora(&loaded)?;
        let tokenizer = TokenizerFiles::of(&self.base)?;
        let special = tokenizer.special(loaded.config());
        local::folder_for_base(&self.out)?;
        merge::write_merged(&self.out, &loaded, &lora, &special)
            .map_err(|error| local::unfit("base", &self.base, error))?;
        tokenizer.write(&self.out)?;
        let written = Written { folder: self.out };
        output.one(&written, |written| {
            vec![format!("merged in {}", written.folder.display())]
        })
    }
}
