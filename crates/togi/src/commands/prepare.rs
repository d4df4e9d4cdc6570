//! `togi prepare`: records in, a data set out.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::{Deserialize, Deserializer};
use togi_data_prep::input::WORDS;
use togi_data_prep::pipeline::OnBadRecord;
use togi_proto::dataprep::v1::{
    Dataset, GetDatasetRequest, PrepareRequest, PrepareSettings, RecordSource, TokenizerSource,
    record_source, tokenizer_source,
};
use togi_proto::job::v1::Job;
use togi_runtime::jobs::random_key;
use togi_tokens::{Learn, OverLong};

use crate::client::{present, succeeded};
use crate::commands::choices::choice;
use crate::commands::{datasets, job_lines, watch};
use crate::error::{Error, Result};
use crate::local::records::column;
use crate::progress::seconds;
use crate::session::Session;
use crate::{embedded, upload};

const EXAMPLES: &str = "\
Examples:
  togi prepare records.jsonl --name mine
  togi prepare chats.jsonl --name chats           # OpenAI messages, ShareGPT, alpaca, Dolly, CSV, …
  togi prepare qa.csv --name qa --column instruction=question --column output=answer
  togi prepare hf://datasets/kunishou/databricks-dolly-15k-ja --name dolly-ja --tokenizer spiece.model
  togi prepare --hub hf://datasets/OWNER/NAME --name both --split train+test
  togi prepare records.jsonl --name mine --learn answer --validation-share 0.05";

/// The beginning of a hub's reference.
const HUB: &str = "hf://";

/// The command's options; also a pipeline's table of the same names, with `_` for `-`.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(before_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("records").required(true).args(["file", "source", "hub"]))]
pub struct Prepare {
    /// The records: JSON, JSON Lines, CSV, TSV or Parquet, gzip and zstd too; `-` is standard
    /// input, hf://… is --hub
    pub file: Option<PathBuf>,
    /// A source in the service's configuration
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// A data set on a hub: hf://datasets/OWNER/NAME[@REVISION]
    #[arg(long, value_name = "REFERENCE")]
    pub hub: Option<String>,
    /// The data set's name [default: the file's]
    #[arg(long, short)]
    pub name: Option<String>,
    /// The base whose tokenizer is used [default: demo]
    #[arg(long, value_name = "NAME", conflicts_with = "tokenizer")]
    pub base: Option<String>,
    /// A SentencePiece model to tokenize with
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// The split to train on, or several: train+test [default: train, where the source has splits]
    #[arg(long, value_name = "SPLIT")]
    pub split: Option<String>,
    /// The split kept for validation, or none [default: validation, where the source has it]
    #[arg(long, value_name = "SPLIT")]
    pub validation_split: Option<String>,
    /// json, jsonl, parquet, csv or tsv; or alpaca, dolly, messages, sharegpt or prompt-completion
    /// [default: detected from the file]
    #[arg(long, value_name = "FORMAT", hide_possible_values = true, value_parser = WORDS)]
    pub format: Option<String>,
    /// A column with another name in the file: OURS=THEIRS; repeatable
    #[arg(long, value_name = "OURS=THEIRS", value_parser = column)]
    #[serde(deserialize_with = "columns")]
    pub column: Vec<(String, String)>,
    /// Most tokens in a row, the end included [default: 512]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<u32>,
    /// What is learned: all or answer [default: all]
    #[arg(
        long,
        value_name = "PART",
        hide_possible_values = true,
        value_parser = choice(Learn::ALL.map(Learn::name), Learn::from_name)
    )]
    pub learn: Option<Learn>,
    /// Share of the records kept for validation, from 0 up to 1 [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub validation_share: Option<f64>,
    /// What becomes of records longer than --max-length: truncate or reject [default: truncate]
    #[arg(
        long,
        value_name = "CHOICE",
        hide_possible_values = true,
        value_parser = choice(OverLong::ALL.map(OverLong::name), OverLong::from_name)
    )]
    pub over_long: Option<OverLong>,
    /// Rows in a shard [default: 4096]
    #[arg(long, value_name = "ROWS")]
    pub rows_per_shard: Option<u32>,
    /// What a bad record does: skip (and be named in rejects.jsonl) or fail the job [default:
    /// skip]
    #[arg(
        long,
        value_name = "CHOICE",
        hide_possible_values = true,
        value_parser = choice(OnBadRecord::ALL.map(OnBadRecord::name), OnBadRecord::from_name)
    )]
    pub on_bad_record: Option<OnBadRecord>,
    /// Tokenizing threads [default: the service's configuration]
    #[arg(long, value_name = "THREADS")]
    pub workers: Option<u32>,
    /// The same key and request give the same job
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Queues the job and returns
    #[arg(long)]
    #[serde(skip)]
    pub no_wait: bool,
}

impl Prepare {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        if self.no_wait {
            let job = self.queue(session).await?;
            session.output.say(watch::hint(&job));
            return session.output.one(&job, job_lines::fields);
        }
        session
            .output
            .one(&self.make(session).await?, datasets::fields)
    }

    /// Prepares the data set and prints a summary.
    pub(crate) async fn make(&self, session: &Session) -> Result<Dataset> {
        let started = Instant::now();
        let job = self.queue(session).await?;
        let job = succeeded(watch::prepare(session, job).await?)?;
        let dataset = made(session, &self.dataset_name()?, &job).await?;
        session
            .output
            .say(summary(&dataset, started.elapsed().as_secs_f64()));
        Ok(dataset)
    }

    async fn queue(&self, session: &Session) -> Result<Job> {
        let mut request = self.request(session).await?;
        if request.idempotency_key.is_empty() {
            request.idempotency_key = random_key()?;
        }
        let key = request.idempotency_key.clone();
        let mut client = session.clients.data_prep().await?;
        let answer = client.prepare(request).await;
        let answer = answer.map_err(|status| Error::from(status).of_request(&key))?;
        present(answer.into_inner().job, "job")
    }

    /// Builds the request; local files are uploaded first.
    async fn request(&self, session: &Session) -> Result<PrepareRequest> {
        let name = self.dataset_name()?;
        let tokenizer = match (&self.tokenizer, &self.base) {
            (Some(path), _) => tokenizer_source::Source::Upload(
                upload::file(&session.clients, &session.output, path).await?,
            ),
            (None, Some(base)) => tokenizer_source::Source::Base(base.clone()),
            (None, None) => tokenizer_source::Source::Base(embedded::BASE.to_owned()),
        };
        let records = match (self.local_file(), &self.source, self.hub()) {
            (Some(path), ..) => record_source::Source::Upload(
                upload::file(&session.clients, &session.output, path).await?,
            ),
            (_, Some(source), _) => record_source::Source::Configured(source.clone()),
            (_, _, hub) => record_source::Source::Hub(hub.unwrap_or_default()),
        };
        Ok(PrepareRequest {
            name,
            records: Some(RecordSource {
                source: Some(records),
                format: self.format.clone().unwrap_or_default(),
                columns: self.column.iter().cloned().collect(),
                split: self.split.clone().unwrap_or_default(),
                validation_split: self.validation_split.clone().unwrap_or_default(),
            }),
            tokenizer: Some(TokenizerSource {
                source: Some(tokenizer),
            }),
            settings: Some(PrepareSettings {
                max_length: self.max_length,
                learn: self.learn.map_or("", Learn::name).to_owned(),
                validation_share: self.validation_share,
                over_long: self.over_long.map_or("", OverLong::name).to_owned(),
                rows_per_shard: self.rows_per_shard,
            }),
            on_bad_record: self.on_bad_record.map_or("", OnBadRecord::name).to_owned(),
            workers: self.workers,
            idempotency_key: self.idempotency_key.clone().unwrap_or_default(),
        })
    }

    /// Returns the data set on a hub, which `file` may name too.
    fn hub(&self) -> Option<String> {
        let file = || Some(self.file.as_ref()?.to_str()?.to_owned());
        let named = self.hub.clone().or_else(file);
        named.filter(|text| text.starts_with(HUB) || self.hub.is_some())
    }

    fn local_file(&self) -> Option<&PathBuf> {
        self.file.as_ref().filter(|_| self.hub().is_none())
    }

    fn dataset_name(&self) -> Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let stem = self
            .file
            .as_deref()
            .and_then(|file| file.file_name())
            .and_then(|name| name.to_str());
        let stem = stem
            .and_then(|name| name.split(['.', '@']).next())
            .unwrap_or_default()
            .to_lowercase()
            .replace('_', "-");
        if stem.is_empty()
            || !stem
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
        {
            return Err(Error::Usage("the data set needs a name: --name".to_owned()));
        }
        Ok(stem)
    }
}

/// Returns the data set of a preparation, with its name's revision if that is still the newest.
pub(crate) async fn made(session: &Session, name: &str, job: &Job) -> Result<Dataset> {
    let mut client = session.clients.data_prep().await?;
    let named = client
        .get_dataset(GetDatasetRequest {
            dataset: name.to_owned(),
        })
        .await?
        .into_inner();
    match named.dataset.filter(|dataset| dataset.digest == job.result) {
        Some(dataset) => Ok(dataset),
        None => {
            let request = GetDatasetRequest {
                dataset: job.result.clone(),
            };
            present(
                client.get_dataset(request).await?.into_inner().dataset,
                "dataset",
            )
        }
    }
}

fn summary(dataset: &Dataset, elapsed: f64) -> String {
    let rejected = match dataset.rejected {
        0 => String::new(),
        rejected => format!(", {rejected} rejected (rejects.jsonl beside the shards names each)"),
    };
    let held_out = match dataset.validation_rows {
        0 => String::new(),
        rows => format!(", {rows} kept for validation"),
    };
    let Dataset {
        name,
        revision,
        records_read,
        ..
    } = dataset;
    format!(
        "{name} revision {revision}: {records_read} records read{held_out}{rejected}, in {}",
        seconds(elapsed)
    )
}

/// Reads a pipeline's columns: a table from our names to the file's.
fn columns<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<(String, String)>, D::Error> {
    let table = std::collections::BTreeMap::deserialize(from)?;
    Ok(table.into_iter().collect())
}
