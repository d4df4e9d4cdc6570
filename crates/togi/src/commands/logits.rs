//! `togi logits`: the logits after every token of every line, as a safetensors file; without
//! services.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use togi_model::tensor_file::{Entry, Type, Writer};
use togi_model::{Config, DeviceName, Engine, Precision};

use crate::error::{Error, Result};
use crate::local;
use crate::local::lines::{Line, Lines};
use crate::local::named::Named;
use crate::output::Output;
use crate::progress::Unit;
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi logits --base models/mine --text texts.jsonl --out logits.safetensors
  togi logits --base models/mine --adapter adapters/mine --ids ids.jsonl --out logits.safetensors
  togi logits --base models/mine --precision nf4 --ids ids.jsonl --out logits.safetensors

For line N of the input, from 1, the file has the tensors ids.N (tokens; int64) and logits.N
(tokens, vocabulary; float32).
Lines are as `togi tokenize` reads and writes them.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["ids", "text"]))]
pub struct Logits {
    /// A base's folder
    #[arg(long, value_name = "FOLDER")]
    pub base: PathBuf,
    /// A PEFT folder, or of the services an alias, a generation, or at least 8 digits of it
    #[arg(long, short, value_name = "NAME")]
    pub adapter: Option<PathBuf>,
    /// How the base is held, by a recipe's name for it
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = local::precision)]
    pub precision: Precision,
    /// Token ids, JSON Lines; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub ids: Option<PathBuf>,
    /// Texts, JSON Lines; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// The result.
#[derive(Serialize)]
struct Written {
    file: PathBuf,
    lines: usize,
    tokens: usize,
    vocabulary: usize,
}

/// A line's ids.
struct Sequence {
    line: Line,
    ids: Vec<u32>,
}

impl Logits {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = session.output.clone();
        let device = session.settings.device;
        let adapter = match &self.adapter {
            Some(name) => Some(Named::find(name, session).await?),
            None => None,
        };
        local::on_thread(move || self.work(adapter.as_ref(), device, &output)).await
    }

    fn work(self, adapter: Option<&Named>, device: DeviceName, output: &Output) -> Result<()> {
        let sequences = self.sequences()?;
        let base = Arc::new(local::base(&self.base, device, self.precision)?);
        let config = base.config().clone();
        for sequence in &sequences {
            sequence.check(&config)?;
        }
        let fails = |error| local::unfit("base", &self.base, error);
        let lora = adapter.map(|adapter| adapter.lora(&base)).transpose()?;
        let engine = Engine::on(base, device.device(self.precision)).map_err(fails)?;
        let adapter = lora.map(|lora| engine.adapter(&lora)).transpose();
        let adapter = adapter.map_err(fails)?;
        let unwritten = |error| local::unfit("--out", &self.out, error);
        let mut file =
            Writer::create(&self.out, entries(&sequences, &config)).map_err(unwritten)?;
        for sequence in &sequences {
            let ids: Vec<u8> = sequence
                .ids
                .iter()
                .flat_map(|&id| i64::from(id).to_le_bytes())
                .collect();
            file.write(&ids).map_err(unwritten)?;
        }
        let mut progress = output.progress("computing");
        progress.set_length(sequences.len() as u64, Unit::Count);
        let mut tokens = 0;
        for (done, sequence) in sequences.iter().enumerate() {
            progress.set(done as u64, &format!("line {}", sequence.line.number));
            let logits = engine.logits(&sequence.ids, adapter.as_ref());
            let logits = logits.map_err(|error| sequence.line.wrong(&error.to_string()))?;
            let bytes: Vec<u8> = logits
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            file.write(&bytes).map_err(unwritten)?;
            tokens += sequence.ids.len();
        }
        file.finish().map_err(unwritten)?;
        progress.finish();
        let written = Written {
            file: self.out,
            lines: sequences.len(),
            tokens,
            vocabulary: config.vocab_size,
        };
        output.one(&written, |written| {
            vec![format!(
                "{}: {} lines, {} tokens, {} logits each",
                written.file.display(),
                written.lines,
                written.tokens,
                written.vocabulary
            )]
        })
    }

    fn sequences(&self) -> Result<Vec<Sequence>> {
        let (file, tokenizer) = match (&self.ids, &self.text) {
            (Some(file), _) => (file.as_path(), None),
            (None, file) => (
                file.as_deref().unwrap_or(Path::new("-")),
                Some(local::tokenizer_of(&self.base)?),
            ),
        };
        let mut sequences = Vec::new();
        for line in Lines::open(file)? {
            let line = line?;
            if line.is_blank() {
                continue;
            }
            let ids = match &tokenizer {
                None => line.ids()?,
                Some(tokenizer) => tokenizer.encode(&line.text()?),
            };
            sequences.push(Sequence { line, ids });
        }
        if sequences.is_empty() {
            let file = file.display();
            return Err(Error::Configuration(format!(
                "{file}: there is no line in it"
            )));
        }
        Ok(sequences)
    }
}

impl Sequence {
    /// Checks the ids against the base, before anything is computed or written.
    fn check(&self, config: &Config) -> Result<()> {
        let (len, longest) = (self.ids.len(), config.max_position_embeddings);
        if len == 0 {
            return Err(self.line.wrong("there are no ids"));
        }
        if len > longest {
            let reason = format!("{len} ids are more than the {longest} that the base takes");
            return Err(self.line.wrong(&reason));
        }
        match self
            .ids
            .iter()
            .find(|&&id| id as usize >= config.vocab_size)
        {
            None => Ok(()),
            Some(id) => {
                let reason = format!(
                    "id {id} is not below the vocabulary's {}",
                    config.vocab_size
                );
                Err(self.line.wrong(&reason))
            }
        }
    }

    fn entry(&self, name: &str, kind: Type, shape: Vec<usize>) -> Entry {
        Entry {
            name: format!("{name}.{}", self.line.number),
            kind,
            shape,
        }
    }
}

/// Lists all ids, then all logits: the wider type comes first.
fn entries(sequences: &[Sequence], config: &Config) -> Vec<Entry> {
    let ids = sequences
        .iter()
        .map(|sequence| sequence.entry("ids", Type::I64, vec![sequence.ids.len()]));
    let logits = sequences.iter().map(|sequence| {
        let shape = vec![sequence.ids.len(), config.vocab_size];
        sequence.entry("logits", Type::F32, shape)
    });
    ids.chain(logits).collect()
}
