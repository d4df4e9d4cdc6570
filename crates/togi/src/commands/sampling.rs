//! How answers are chosen: the flags that `generate`, `ask` and `chat` share, and one answer's stream.

use clap::Args;
use togi_proto::inference::v1::{
    Finished, GenerateRequest, GenerateResponse, Instruction, Options, Started,
    generate_request::Prompt, generate_response::Event,
};

use crate::{client::Clients, error::Result};

/// The flags.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "How the answer is chosen")]
pub struct Sampling {
    /// An alias or a generation [default: the base alone]
    #[arg(
        long,
        short,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub adapter: String,
    /// Over 0; higher is freer [default: 0.7]
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
    /// Makes tokens that occurred less likely; 1 for none [default: 1]
    #[arg(long)]
    pub repetition_penalty: Option<f32>,
    /// Most tokens of the answer [default: 256]
    #[arg(long, value_name = "TOKENS")]
    pub max_new_tokens: Option<u32>,
    /// Seed of the draw [default: from the clock]
    #[arg(long)]
    pub seed: Option<u64>,
    /// A text that ends the answer; more than once
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Always the likeliest token
    #[arg(long)]
    pub greedy: bool,
}

impl Sampling {
    /// Returns the greedy choice without a ban of repeated tokens, as scores are taken.
    pub fn exact(adapter: &str, max_new_tokens: u32) -> Sampling {
        Sampling {
            adapter: adapter.to_owned(),
            greedy: true,
            no_repeat_ngram_size: Some(0),
            max_new_tokens: Some(max_new_tokens),
            ..Sampling::default()
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
            adapter: self.adapter.clone(),
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
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// What answered.
    pub started: Started,
    /// Why it ended.
    pub finished: Finished,
}

/// Streams an answer; every message is given to `seen` as it comes.
pub async fn answer(
    clients: &Clients,
    request: GenerateRequest,
    mut seen: impl FnMut(&GenerateResponse) -> Result<()>,
) -> Result<Answer> {
    let mut stream = clients
        .inference()
        .await?
        .generate(request)
        .await?
        .into_inner();
    let mut answer = Answer::default();
    while let Some(response) = stream.message().await? {
        seen(&response)?;
        match response.event {
            Some(Event::Started(started)) => answer.started = started,
            Some(Event::Piece(piece)) => answer.text.push_str(&piece.text),
            Some(Event::Finished(finished)) => answer.finished = finished,
            None => {}
        }
    }
    Ok(answer)
}
