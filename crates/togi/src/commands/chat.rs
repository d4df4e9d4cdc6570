//! `togi chat`: one question at a time; each stands alone, as adapters are trained.

use std::io::{IsTerminal, Write, stderr, stdin};

use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::commands::answerer::Answerer;
use crate::commands::sampling::Sampling;
use crate::error::{Error, Result};
use crate::output::complain;
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi chat --adapter mine
  togi chat --adapter mine --temperature 0.2

Each question stands alone. `quit` or the end of input ends.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Chat {
    /// The sampling options.
    #[command(flatten)]
    pub sampling: Sampling,
}

impl Chat {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let interactive = stdin().is_terminal();
        let answerer = Answerer::of(&self.sampling, session).await?;
        if let Answerer::Service(clients, _) = &answerer {
            // A missing service is reported before the first question.
            clients.inference().await?;
        }
        if interactive {
            session.output.say("one question at a time; `quit` ends");
        }
        let mut lines = BufReader::new(tokio::io::stdin());
        loop {
            if interactive {
                let mut stderr = stderr().lock();
                write!(stderr, "{} ", session.output.bold("指示>"))?;
                stderr.flush()?;
            }
            let Some(question) = next_line(&mut lines).await? else {
                break;
            };
            match question.trim() {
                "" => {}
                "quit" | "exit" | "ｑｕｉｔ" => break,
                question => match self.answer(session, &answerer, question).await {
                    // A failed request ends the session only if nobody is at the terminal.
                    Err(error @ (Error::Service { .. } | Error::NoAnswer { .. }))
                        if interactive =>
                    {
                        complain(&error);
                    }
                    answered => answered?,
                },
            }
        }
        Ok(())
    }

    /// Answers one question.
    async fn answer(&self, session: &Session, answerer: &Answerer, question: &str) -> Result<()> {
        let request = self.sampling.instruction(question, "");
        answerer.print(session, request, &self.sampling).await
    }
}

/// Reads a line without invalid UTF-8: a terminal may leave half of a deleted character.
async fn next_line<R: AsyncBufReadExt + Unpin>(lines: &mut R) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    if lines.read_until(b'\n', &mut bytes).await? == 0 {
        return Ok(None);
    }
    Ok(Some(
        String::from_utf8_lossy(&bytes).replace('\u{fffd}', ""),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_a_character_is_left_out() {
        let mut input = BufReader::new(&b"\xe5\xaf\x8c\xe5\xa3\n\xe5\xb1\xb1"[..]);
        assert_eq!(
            next_line(&mut input).await.unwrap().as_deref(),
            Some("富\n")
        );
        assert_eq!(next_line(&mut input).await.unwrap().as_deref(), Some("山"));
        assert_eq!(next_line(&mut input).await.unwrap(), None);
    }
}
