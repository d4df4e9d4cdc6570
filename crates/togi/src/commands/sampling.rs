//! How answers are chosen: the flags that `generate`, `ask` and `chat` share.

use std::path::PathBuf;

use clap::Args;
use togi_model::Precision;
use togi_proto::inference::v1::generate_request::Prompt;
use togi_proto::inference::v1::{GenerateRequest, Instruction, Options};

use crate::local;

/// The heading of the flags in a command's help.
pub(crate) const SAMPLING: &str = "How the answer is chosen";

/// The flags.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = SAMPLING)]
pub struct Sampling {
    /// Answers in this process, without services, over the base in this folder
    #[arg(long, value_name = "FOLDER")]
    pub base: Option<PathBuf>,
    /// How --base is held, by a recipe's name for it [default: f32]
    #[arg(long, value_name = "NAME", requires = "base", value_parser = local::precision)]
    pub precision: Option<Precision>,
    /// An alias, a generation, or at least 8 digits of it; with --base also a PEFT folder [default:
    /// the base alone]
    #[arg(
        long,
        short,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub adapter: String,
    /// Higher is more random; 0 is greedy [default: 0.7]
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Draws from the likeliest tokens that have this share together [default: 0.75]
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Draws from this many likeliest tokens; 0 for all [default: 40]
    #[arg(long)]
    pub top_k: Option<u32>,
    /// No run of this many tokens occurs twice in prompt and answer; 0 for no ban [default: 2]
    #[arg(long, value_name = "TOKENS")]
    pub no_repeat_ngram_size: Option<u32>,
    /// Makes tokens that occurred before less likely; 1 for no penalty [default: 1]
    #[arg(long)]
    pub repetition_penalty: Option<f32>,
    /// Most tokens of the answer [default: 256]
    #[arg(long, value_name = "TOKENS")]
    pub max_new_tokens: Option<u32>,
    /// Tokens of the answer before which it does not end [default: 0]
    #[arg(long, value_name = "TOKENS")]
    pub min_new_tokens: Option<u32>,
    /// The end of sequence does not end the answer
    #[arg(long)]
    pub ignore_eos: bool,
    /// Subtracted from the logit of a token that the answer has, -2 to 2 [default: 0]
    #[arg(long, allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time that the answer has the token, -2 to 2 [default: 0]
    #[arg(long, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Added to a token's logit, -100 to 100; repeatable
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// A token that ends the answer as the end of sequence does; repeatable
    #[arg(long, value_name = "ID")]
    pub stop_token_id: Vec<u32>,
    /// Seed of the draw [default: from the clock]
    #[arg(long)]
    pub seed: Option<u64>,
    /// A text that ends the answer; repeatable
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Always the likeliest token
    #[arg(long)]
    pub greedy: bool,
}

impl Sampling {
    /// Returns greedy sampling without the ban on repeated n-grams, as for scoring.
    pub fn exact(adapter: &str, max_new_tokens: u32) -> Self {
        Self {
            adapter: adapter.to_owned(),
            greedy: true,
            no_repeat_ngram_size: Some(0),
            max_new_tokens: Some(max_new_tokens),
            ..Self::default()
        }
    }

    /// Builds the request for an instruction.
    pub fn instruction(&self, instruction: &str, input: &str) -> GenerateRequest {
        let instruction = Instruction {
            instruction: instruction.to_owned(),
            input: input.to_owned(),
        };
        self.request(Prompt::Instruction(instruction))
    }

    /// Builds a request.
    pub fn request(&self, prompt: Prompt) -> GenerateRequest {
        GenerateRequest {
            // With --base, the adapter is already loaded.
            adapter: match self.base {
                Some(_) => String::new(),
                None => self.adapter.clone(),
            },
            prompt: Some(prompt),
            options: Some(self.options()),
        }
    }

    fn options(&self) -> Options {
        Options {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            repetition_penalty: self.repetition_penalty,
            max_new_tokens: self.max_new_tokens,
            seed: self.seed,
            stop: self.stop.clone(),
            greedy: self.greedy.then_some(true),
            min_new_tokens: self.min_new_tokens,
            ignore_eos: self.ignore_eos.then_some(true),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            stop_token_ids: self.stop_token_id.clone(),
            ..Options::default()
        }
    }
}

/// Reads a token's id and its bias.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let pair = text.split_once('=');
    let parse = |(id, bias): (&str, &str)| Some((id.parse().ok()?, bias.parse().ok()?));
    pair.and_then(parse)
        .ok_or_else(|| "a token's id, = and a number are expected, as in 42=-1.5".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!(bias("42=-1.5"), Ok((42, -1.5)));
        for wrong in ["42", "=1", "a=1", "1=b", "-1=1", "1=2=3"] {
            assert!(bias(wrong).is_err(), "{wrong}");
        }
    }
}
