//! `togi tokenize`: texts in, token ids out, or the other way; without services.

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use togi_tokens::{Columns, Record, Tokenizer, prompt};

use crate::error::{Error, Result};
use crate::local;
use crate::local::lines::{Line, Lines};

const EXAMPLES: &str = "\
Examples:
  togi tokenize --tokenizer spiece.model texts.jsonl > ids.jsonl
  echo 日本で一番高い山は富士山です。 | togi tokenize --base models/mine --plain
  togi tokenize --base models/mine records.jsonl --template --eos --max-length 512
  togi tokenize --base models/mine ids.jsonl --decode

A line of the input is a text ({\"text\": …} or \"…\"), a record with --template, ids ({\"ids\": […]}
or […]) with --decode. Every line gives one: {\"ids\": […]}, or {\"text\": …} with --decode.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("model").required(true).args(["tokenizer", "base"]))]
pub struct Tokenize {
    /// JSON Lines; `-` for standard input
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
    /// Every line is a record, in the form that adapters are trained on
    #[arg(long, conflicts_with = "decode")]
    pub template: bool,
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
    pub(crate) async fn run(self) -> Result<()> {
        local::on_thread(move || self.work()).await
    }

    fn work(self) -> Result<()> {
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
        for line in Lines::open(&self.file)? {
            let line = line?;
            if line.is_blank() && !self.plain {
                continue;
            }
            if self.decode {
                let text = tokenizer.decode(&line.ids()?);
                write(&mut out, &Text { text })?;
            } else {
                let ids = self.encode(&tokenizer, &line)?;
                write(&mut out, &Ids { ids })?;
            }
        }
        Ok(out.flush()?)
    }

    fn encode(&self, tokenizer: &Tokenizer, line: &Line) -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode(&self.text(line)?);
        let eos = tokenizer.eos().filter(|_| self.eos);
        if let Some(most) = self.max_length {
            // As in training, truncation keeps the end of sequence last.
            ids.truncate(most as usize - usize::from(eos.is_some()));
        }
        ids.extend(eos);
        Ok(ids)
    }

    fn text(&self, line: &Line) -> Result<String> {
        if self.plain {
            return Ok(line.content.clone());
        }
        if !self.template {
            return line.text();
        }
        let record = Record::from_json_slice(line.content.as_bytes(), &Columns::default());
        let record = record.map_err(|reject| match reject.field.as_str() {
            "" => line.wrong(&reject.reason),
            field => line.wrong(&format!("{field}: {}", reject.reason)),
        })?;
        Ok(prompt::training(&record).text)
    }
}

fn write(out: &mut impl Write, line: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
    Ok(out.write_all(b"\n")?)
}
