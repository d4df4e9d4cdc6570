//! `togi tokenize`: texts in, token ids out, or the other way; without services.

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use togi_tokens::{Record, Tokenizer, prompt};

use crate::error::{Error, Result};
use crate::local;
use crate::local::lines::{Line, Lines};
use crate::local::records;
use crate::local::records::Reading;
use crate::output::Output;
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi tokenize --tokenizer spiece.model texts.jsonl > ids.jsonl
  echo 日本で一番高い山は富士山です。 | togi tokenize --base models/mine --plain
  togi tokenize --base models/mine records.jsonl --template --eos --max-length 512
  togi tokenize --base models/mine ids.jsonl --decode

A line of the input is a text ({\"text\": …} or \"…\"), or ids ({\"ids\": […]} or […]) with --decode.
With --template the file has records, in every form that `togi prepare` reads. Each gives a line:
{\"ids\": […]}, or {\"text\": …} with --decode.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("model").required(true).args(["tokenizer", "base"]))]
pub struct Tokenize {
    /// JSON Lines, or any file of records with --template; `-` for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// A SentencePiece model
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// A base's folder, for the tokenizer in it
    #[arg(long, value_name = "FOLDER")]
    pub base: Option<PathBuf>,
    /// Every line is a plain text
    #[arg(long, conflicts_with_all = ["template", "decode"])]
    pub plain: bool,
    /// The file has records, which are tokenized as adapters are trained on them
    #[arg(long, conflicts_with = "decode")]
    pub template: bool,
    /// How the records are read
    #[command(flatten)]
    pub reading: Reading,
    /// Ids to texts
    #[arg(long, conflicts_with_all = ["eos", "max_length"])]
    pub decode: bool,
    /// Ends every line with the end of sequence
    #[arg(long)]
    pub eos: bool,
    /// Most ids of a line, the end of sequence included
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_length: Option<u32>,
}

/// A line of ids.
#[derive(Serialize)]
struct Ids {
    ids: Vec<u32>,
}

/// A line of text.
#[derive(Serialize)]
struct Text {
    text: String,
}

impl Tokenize {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = session.output.clone();
        local::on_thread(move || self.work(&output)).await
    }

    fn work(self, output: &Output) -> Result<()> {
        if !self.template && self.reading.is_said() {
            let text = "--format and --column go with --template: only records have a form";
            return Err(Error::Usage(text.to_owned()));
        }
        let tokenizer = match (&self.tokenizer, &self.base) {
            (Some(file), _) => local::tokenizer(file)?,
            (None, folder) => local::tokenizer_of(folder.as_deref().unwrap_or(".".as_ref()))?,
        };
        if self.eos && tokenizer.eos().is_none() {
            return Err(Error::Usage(
                "--eos: the tokenizer has no end of sequence".to_owned(),
            ));
        }
        let mut out = BufWriter::new(stdout().lock());
        if self.template {
            let mut each = |record: &Record| {
                let ids = self.encode(&tokenizer, &prompt::training(record).text);
                write(&mut out, &Ids { ids })
            };
            let reading = records::each(&self.file, &self.reading, &mut each)?;
            output.say(reading);
            return Ok(out.flush()?);
        }
        for line in Lines::open(&self.file)? {
            let line = line?;
            if line.is_blank() && !self.plain {
                continue;
            }
            if self.decode {
                let text = tokenizer.decode(&line.ids()?);
                write(&mut out, &Text { text })?;
            } else {
                let ids = self.encode(&tokenizer, &self.text(&line)?);
                write(&mut out, &Ids { ids })?;
            }
        }
        Ok(out.flush()?)
    }

    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let mut ids = tokenizer.encode(text);
        let eos = tokenizer.eos().filter(|_| self.eos);
        if let Some(most) = self.max_length {
            // As in training, truncation keeps the end of sequence last.
            ids.truncate(most as usize - usize::from(eos.is_some()));
        }
        ids.extend(eos);
        ids
    }

    fn text(&self, line: &Line) -> Result<String> {
        if self.plain {
            return Ok(line.content.clone());
        }
        line.text()
    }
}

fn write(out: &mut impl Write, line: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
    Ok(out.write_all(b"\n")?)
}
