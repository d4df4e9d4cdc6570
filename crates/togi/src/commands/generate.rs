//! `togi generate`: one prompt in, one answer out, as it comes.

use std::io::{IsTerminal, Read, stdin};

use clap::Args;
use togi_proto::inference::v1::Instruction;
use togi_proto::inference::v1::generate_request::Prompt;

use crate::commands::answerer::Answerer;
use crate::commands::sampling::{SAMPLING, Sampling};
use crate::error::{Error, Result};
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi generate --instruction 日本で一番高い山は？
  togi generate --adapter mine --instruction 要約してください。 --input \"$(cat article.txt)\"
  echo 昔々、あるところに | togi generate --raw - --max-new-tokens 64
  togi generate --adapter mine --instruction 1+1は？ --greedy --logprobs 5 -o json
  togi generate --base models/mine --adapter adapters/mine --instruction 1+1は？ --greedy    without services";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("prompt").args(["instruction", "raw"]))]
pub struct Generate {
    /// What to do, in the form that adapters are trained on
    #[arg(long, short, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Material for the instruction
    #[arg(
        long,
        value_name = "TEXT",
        requires = "instruction",
        default_value = "",
        hide_default_value = true
    )]
    pub input: String,
    /// Text without a template; `-` for standard input, which is also the default
    #[arg(long, value_name = "TEXT")]
    pub raw: Option<String>,
    /// The sampling options.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Answers to the prompt, 1 to 8; answer i has the seed of the first plus i [default: 1]
    #[arg(short, value_name = "ANSWERS", help_heading = SAMPLING)]
    pub n: Option<u32>,
    /// With -o json: the log-probability of each token, and of this many likeliest, 0 to 20
    #[arg(long, value_name = "TOKENS", help_heading = SAMPLING)]
    pub logprobs: Option<u32>,
    /// With -o json: the same for the prompt's tokens
    #[arg(long, value_name = "TOKENS", help_heading = SAMPLING)]
    pub prompt_logprobs: Option<u32>,
}

impl Generate {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let prompt = match (self.instruction, self.raw.as_deref()) {
            (Some(instruction), _) => Prompt::Instruction(Instruction {
                instruction,
                input: self.input,
            }),
            (None, Some("-")) => Prompt::Raw(from_stdin()?),
            (None, Some(raw)) => Prompt::Raw(raw.to_owned()),
            (None, None) if stdin().is_terminal() => return Err(missing_prompt()),
            (None, None) => Prompt::Raw(from_stdin()?),
        };
        let mut request = self.sampling.request(prompt);
        let options = request.options.get_or_insert_default();
        options.n = self.n;
        options.logprobs = self.logprobs;
        options.prompt_logprobs = self.prompt_logprobs;
        let answerer = Answerer::of(&self.sampling, session).await?;
        answerer.print(session, request, &self.sampling).await
    }
}

/// Reads the prompt without its last line break, which is the shell's.
fn from_stdin() -> Result<String> {
    let mut text = String::new();
    stdin().lock().read_to_string(&mut text)?;
    if text.trim().is_empty() {
        return Err(missing_prompt());
    }
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn missing_prompt() -> Error {
    let reason = "a prompt is missing: --instruction, --raw, or text on standard input";
    Error::Usage(reason.to_owned())
}
