//! `togi train --local`: trains on a file of records in this process and writes a PEFT folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use clap::Args;
use togi_base::CheckedBase;
use togi_model::DeviceName;
use togi_proto::trainer::v1 as proto;
use togi_runtime::registry::base_place::BasePlace;
use togi_tokens::{Learn, Settings, Tokenizer};
use togi_trainer::Recipe;
use togi_trainer::local::{Run, Trained};

use crate::commands::choices::choice;
use crate::commands::job_lines;
use crate::error::{Error, Result};
use crate::local::named::Named;
use crate::local::records::Reading;
use crate::local::{portable, records};
use crate::output::Output;
use crate::progress::Unit;
use crate::{local, recipe};

/// The default name of the log in the folder.
const LOG: &str = "log.jsonl";

/// The options of a local training.
#[derive(Debug, Args)]
#[command(next_help_heading = "Without services")]
pub struct Local {
    /// Trains in this process: --records in, a PEFT folder out; --base is a folder then
    #[arg(
        long,
        requires_all = ["records", "out", "base"],
        conflicts_with_all = ["dataset", "alias", "idempotency_key", "watch", "no_watch", "dry_run"]
    )]
    pub local: bool,
    /// The records: JSON, JSON Lines, CSV, TSV or Parquet, gzip and zstd too
    #[arg(long, value_name = "FILE", requires = "local")]
    pub records: Option<PathBuf>,
    /// How the records are read
    #[command(flatten)]
    pub reading: Reading,
    /// A SentencePiece model [default: the one in the base's folder]
    #[arg(long, value_name = "FILE", requires = "local")]
    pub tokenizer: Option<PathBuf>,
    /// Most tokens in a row, the end included [default: 512]
    #[arg(long, value_name = "TOKENS", requires = "local")]
    pub max_length: Option<u32>,
    /// What is learned: all or answer [default: all]
    #[arg(
        long,
        value_name = "PART",
        requires = "local",
        hide_possible_values = true,
        value_parser = choice(Learn::ALL.map(Learn::name), Learn::from_name)
    )]
    pub learn: Option<Learn>,
    /// The values to start from: a PEFT folder, or of the services an alias, a generation, or at
    /// least 8 digits of it; rank, alpha and targets must be the recipe's
    #[arg(long, value_name = "NAME", requires = "local")]
    pub init_adapter: Option<PathBuf>,
    /// The folder for the adapter, its report and its log
    #[arg(long, value_name = "FOLDER", requires = "local")]
    pub out: Option<PathBuf>,
    /// The file for the log, a line a step [default: log.jsonl in --out]
    #[arg(long, value_name = "FILE", requires = "local")]
    pub log: Option<PathBuf>,
}

/// A local training.
pub(super) struct Training {
    pub(super) recipe: PathBuf,
    pub(super) base: PathBuf,
    pub(super) device: DeviceName,
    pub(super) init: Option<Named>,
    pub(super) options: Local,
}

impl Training {
    /// Trains and writes the folder. Not for async code.
    pub(super) fn work(self, output: &Output) -> Result<()> {
        let out = self.options.out.clone().unwrap_or_default();
        let recipe = Recipe::try_from(recipe::recipe(&self.recipe)?).map_err(refused)?;
        let CheckedBase { base, tokenizer } = self.base(&recipe)?;
        recipe.check_base(base.config()).map_err(refused)?;
        let (base, tokenizer) = (Arc::new(base), Arc::new(tokenizer));
        let records = self.records(&tokenizer)?;
        output.say(&records.reading);
        if records.rejected > 0 {
            let (count, file) = (records.rejected, out.join("rejects.jsonl"));
            output.say(format_args!(
                "records that cannot be used: {count}, named in {}",
                file.display()
            ));
        }
        let init = self.init.as_ref().map(|named| named.lora(&base));
        let place = portable::of_folder(&self.base)?;
        let steps = recipe.steps(records.rows.len() as u64);
        let run = Run {
            base,
            device: self.device,
            base_name: self.base.display().to_string(),
            base_origin: place.folder_url()?,
            tokenizer_digest: tokenizer.digest().to_owned(),
            dataset: records.dataset,
            rows: records.rows,
            recipe,
            init: init.transpose()?,
        };
        let plan = run.memory().map_err(refused)?;
        output.say(job_lines::plan(&proto::MemoryPlan::from(&plan), steps).join("\n"));
        local::folder_for(&out)?;
        write(&out, "rejects.jsonl", &records.rejects)?;
        let log = self.options.log.unwrap_or_else(|| out.join(LOG));
        let trained = train(run, steps, &log, output)?;
        write_all(&out, &trained, &place)?;
        output.say(format_args!("the adapter is in {}", out.display()));
        if let Some(divergence) = &trained.divergence {
            output.say(divergence);
        }
        output.one(&trained.report, |report| {
            let figure = |name: &str| report[name].to_string();
            vec![
                format!("generation  {}", trained.adapter.generation),
                format!("steps       {}", figure("steps")),
                format!(
                    "last loss   {} (mean of the last {} steps)",
                    report["loss"]["last"], report["loss"]["last_steps"]
                ),
                format!("seconds     {}", figure("seconds")),
            ]
        })
    }

    fn base(&self, recipe: &Recipe) -> Result<CheckedBase> {
        let base = local::base(&self.base, self.device, recipe.precision)?;
        let (from, checked) = match &self.options.tokenizer {
            Some(file) => (
                file,
                CheckedBase::with_tokenizer(base, local::tokenizer(file)?),
            ),
            None => (&self.base, CheckedBase::new(base)),
        };
        let checked = checked.map_err(|error| Error::unfit("tokenizer", from, error))?;
        if checked.tokenizer.eos().is_none() {
            let reason = "it has no end-of-sequence piece";
            return Err(Error::unfit("tokenizer", from, reason));
        }
        Ok(checked)
    }

    fn records(&self, tokenizer: &Arc<Tokenizer>) -> Result<records::Records> {
        let mut settings = Settings {
            learn: self.options.learn.unwrap_or_default(),
            ..Settings::default()
        };
        settings.max_length = self.options.max_length.unwrap_or(settings.max_length);
        let file = self.options.records.as_deref().unwrap_or(Path::new(""));
        records::read(file, &self.options.reading, tokenizer, settings)
    }
}

/// Runs the training loop, with its log and its progress.
fn train(run: Run, steps: u64, log: &Path, output: &Output) -> Result<Trained> {
    let unwritten = |error: io::Error| Error::file(log, error);
    let mut file = BufWriter::new(File::create(log).map_err(unwritten)?);
    let mut progress = output.progress("training");
    progress.set_length(steps, Unit::Count);
    let trained = run.train(|step| {
        serde_json::to_writer(&mut file, &step)?;
        file.write_all(b"\n")?;
        // Every line is flushed after its step, for readers of the log.
        file.flush()?;
        progress.set(step.step, &job_lines::step(&proto::Step::from(&step)));
        Ok(())
    });
    progress.finish();
    trained.map_err(|error| match error {
        togi_trainer::Error::Io(error) => unwritten(error),
        other => refused(other),
    })
}

fn write_all(out: &Path, trained: &Trained, place: &BasePlace) -> Result<()> {
    let files = trained.adapter.files.iter();
    let files = files.map(|(name, bytes)| ((*name).to_owned(), bytes.clone()));
    let whole = fs::canonicalize(out).map_err(|error| Error::file(out, error))?;
    let files = portable::placed(files.collect(), place, &whole.display().to_string())?;
    for (name, bytes) in &files {
        write(out, name, bytes)?;
    }
    for (name, paper) in [
        ("report.json", &trained.report),
        ("trainer_state.json", &trained.trainer_state),
    ] {
        write(out, name, format!("{paper:#}\n").as_bytes())?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(|error| Error::file(path, error))
}

/// Keeps the class that the error would have in a job.
fn refused(error: togi_trainer::Error) -> Error {
    togi_runtime::Error::from(error).into()
}
