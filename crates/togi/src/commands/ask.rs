//! `togi ask`: a list of questions, an answer each, and a score where the right answers are given.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::commands::answerer::Answerer;
use crate::commands::sampling::Sampling;
use crate::error::{Error, Result};
use crate::progress::Unit;
use crate::score::{Score, is_right};
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi ask questions.txt --adapter mine                 a question in each line
  togi ask questions.jsonl --adapter mine --greedy --no-repeat-ngram-size 0
  togi ask questions.jsonl --adapter mine -o json > answers.jsonl

A line of JSON has instruction, and may have input and output, the right answer.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Ask {
    /// The questions: text, one a line, or JSON Lines; `-` for standard input
    pub file: PathBuf,
    /// The sampling options.
    #[command(flatten)]
    pub sampling: Sampling,
}

/// A question in a file.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Question {
    instruction: String,
    #[serde(default)]
    input: String,
    output: Option<String>,
}

/// A line of the answers as JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    instruction: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    input: &'a str,
    answer: &'a str,
    generation: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    right: Option<bool>,
}

impl Ask {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let questions = read(&self.file)?;
        let output = &session.output;
        let answerer = Answerer::of(&self.sampling, session).await?;
        let mut progress = output.progress("asking");
        progress.set_length(questions.len() as u64, Unit::Count);
        let mut score = Score::default();
        for (asked, question) in questions.iter().enumerate() {
            progress.set(asked as u64, &question.instruction);
            let request = self
                .sampling
                .instruction(&question.instruction, &question.input);
            let answer = answerer.answer(request, |_| Ok(())).await?;
            let right = question
                .output
                .as_deref()
                .map(|expected| is_right(&answer.text, expected));
            if let Some(right) = right {
                score.count(right);
            }
            let line = Line {
                instruction: &question.instruction,
                input: &question.input,
                answer: &answer.text,
                generation: &answer.started.generation,
                output: question.output.as_deref(),
                right,
            };
            progress.suspend(|| output.one(&line, |line| lines(session, line)))?;
        }
        progress.finish();
        if score.asked > 0 {
            output.say(format_args!("right: {score}"));
        }
        Ok(())
    }
}

/// Writes one answer for people.
fn lines(session: &Session, line: &Line<'_>) -> Vec<String> {
    let output = &session.output;
    let mut lines = vec![output.bold(&format!("Q: {}", line.instruction))];
    if !line.input.is_empty() {
        lines.push(format!("   {}", line.input));
    }
    let mark = match line.right {
        None => String::new(),
        Some(true) => output.green(" ✓"),
        Some(false) => output.red(&format!(
            " ✗ (expected: {})",
            line.output.unwrap_or_default()
        )),
    };
    lines.push(format!("A: {}{mark}", line.answer.trim_end()));
    lines.push(String::new());
    lines
}

/// Reads the questions; a file whose first line begins with a brace is JSON Lines.
fn read(path: &Path) -> Result<Vec<Question>> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().lock().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(path).map_err(|error| Error::file(path, error))?;
    }
    let lines = text
        .strip_prefix('\u{feff}')
        .unwrap_or(&text)
        .lines()
        .enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let is_json = text
        .trim_start_matches('\u{feff}')
        .trim_start()
        .starts_with('{');
    let questions: Vec<Question> = lines
        .map(|(number, line)| {
            if is_json {
                serde_json::from_str(line).map_err(|error| {
                    Error::Configuration(format!("{}:{}: {error}", path.display(), number + 1))
                })
            } else {
                Ok(Question {
                    instruction: line.trim().to_owned(),
                    input: String::new(),
                    output: None,
                })
            }
        })
        .collect::<Result<_>>()?;
    if questions.is_empty() {
        let file = path.display();
        return Err(Error::Configuration(format!(
            "{file}: there is no question in it"
        )));
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions(text: &str) -> Result<Vec<Question>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn text_and_json_lines_are_told_apart() {
        let text = questions("一つ目は？\n\n 二つ目は？ \n").unwrap();
        assert_eq!(
            text.iter()
                .map(|question| question.instruction.as_str())
                .collect::<Vec<_>>(),
            ["一つ目は？", "二つ目は？"]
        );
        let json = questions("{\"instruction\":\"a\",\"output\":\"b\",\"kind\":\"held-out\"}\n{\"instruction\":\"c\"}").unwrap();
        assert_eq!(json[0].output.as_deref(), Some("b"));
        assert_eq!(json[1].output, None);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = questions("{\"instruction\":\"a\"}\n{\"question\":\"b\"}").unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(
            error
                .to_string()
                .contains(":2: missing field `instruction`"),
            "{error}"
        );
        assert_eq!(questions("\n\n").unwrap_err().exit_code(), 64);
    }
}
