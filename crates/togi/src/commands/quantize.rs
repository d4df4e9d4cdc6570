//! `togi quantize`: a base's folder in, the same base with packed weights out; without services.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use togi_model::{Precision, base};

use crate::error::Result;
use crate::local;
use crate::local::tokenizer_files::TokenizerFiles;
use crate::output::Output;
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi quantize --base models/mine --precision nf4 --out models/mine-nf4
  togi quantize --base models/mine --precision int8 --out models/mine-int8

The folder has the form in which transformers saves a base that bitsandbytes has quantized.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Quantize {
    /// A base's folder
    #[arg(long, value_name = "FOLDER")]
    pub base: PathBuf,
    /// How the base shall be held: nf4 or int8
    #[arg(long, value_name = "NAME", value_parser = local::precision)]
    pub precision: Precision,
    /// The folder to write, new or empty
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
}

/// The result.
#[derive(Serialize)]
struct Written {
    folder: PathBuf,
    precision: &'static str,
}

impl Quantize {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = session.output.clone();
        local::on_thread(move || self.work(&output)).await
    }

    fn work(self, output: &Output) -> Result<()> {
        local::present(&self.base)?;
        let tokenizer = TokenizerFiles::of(&self.base)?;
        local::folder_for_base(&self.out)?;
        base::write_quantized(&self.base, &self.out, self.precision)
            .map_err(|error| local::unfit("base", &self.base, error))?;
        tokenizer.write(&self.out)?;
        let written = Written {
            folder: self.out,
            precision: self.precision.name(),
        };
        output.one(&written, |written| {
            vec![format!(
                "{} in {}",
                written.precision,
                written.folder.display()
            )]
        })
    }
}
