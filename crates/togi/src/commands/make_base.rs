//! `togi make-base`: a base of a given shape with random weights, for trials and measurements;
//! without services.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use togi_model::Config;
use togi_model::base::{Buffers, Random};
use togi_model::tensor_file::Type;

use crate::error::{Error, Result};
use crate::local;
use crate::output::Output;
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi make-base --shape rinna-3.6b --dtype fp16 --buffers-2023 --out models/random-3.6b
  togi make-base --shape config.json --seed 7 --out models/small

The same shape and seed give the same weights. There is no tokenizer in the folder.";

/// The shapes that go by a name.
const SHAPES: [(&str, &str); 1] = [(
    "rinna-3.6b",
    r#"{
        "vocab_size": 32000, "hidden_size": 2816, "num_hidden_layers": 36, "num_attention_heads": 22,
        "intermediate_size": 11264, "hidden_act": "gelu", "rotary_pct": 1.0, "rotary_emb_base": 10000,
        "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "use_parallel_residual": false,
        "tie_word_embeddings": false, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0
    }"#,
)];

/// The weights' types.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    Fp16,
    /// Brain floats.
    Bf16,
}

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct MakeBase {
    /// rinna-3.6b, or a config.json
    #[arg(long, value_name = "NAME")]
    pub shape: PathBuf,
    /// The folder to write, new or empty
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Type of the weights: f32, fp16 or bf16
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "f32",
        hide_possible_values = true
    )]
    pub dtype: Dtype,
    /// Adds the constant buffers that files of 2023 have
    #[arg(long)]
    pub buffers_2023: bool,
}

/// The result.
#[derive(Serialize)]
struct Written {
    folder: PathBuf,
    parameters: u64,
}

impl MakeBase {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = session.output.clone();
        local::on_thread(move || self.work(&output)).await
    }

    fn work(self, output: &Output) -> Result<()> {
        let config = shape(&self.shape)?;
        local::folder_for_base(&self.out)?;
        let parameters = config.parameters();
        let random = Random {
            config,
            seed: self.seed,
            kind: match self.dtype {
                Dtype::F32 => Type::F32,
                Dtype::Fp16 => Type::F16,
                Dtype::Bf16 => Type::Bf16,
            },
            buffers: if self.buffers_2023 {
                Buffers::Of2023
            } else {
                Buffers::None
            },
        };
        random
            .write(&self.out)
            .map_err(|error| local::unfit("--out", &self.out, error))?;
        let written = Written {
            folder: self.out,
            parameters,
        };
        output.one(&written, |written| {
            vec![format!(
                "{} parameters in {}",
                written.parameters,
                written.folder.display()
            )]
        })
    }
}

/// Reads a shape: a file where there is one, else one of the names.
fn shape(name: &Path) -> Result<Config> {
    let known = SHAPES.iter().find(|(known, _)| name == Path::new(known));
    let text = match known {
        Some((_, text)) if !name.exists() => (*text).to_owned(),
        _ => std::fs::read_to_string(name).map_err(|error| Error::file(name, error))?,
    };
    Config::from_json(text.as_bytes()).map_err(|error| Error::unfit("shape", name, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_shape_is_one() {
        for (name, _) in SHAPES {
            shape(Path::new(name)).unwrap();
        }
        let parameters = shape(Path::new("rinna-3.6b")).unwrap().parameters();
        assert_eq!(parameters / 10_000_000, 360, "{parameters}");
        assert_eq!(shape(Path::new("none")).unwrap_err().exit_code(), 3);
    }
}
