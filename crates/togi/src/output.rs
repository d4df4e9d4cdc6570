//! Writes data to standard output, as a table or as JSON, and messages to standard error.

use std::io::{IsTerminal, Write};
use std::{env, fmt, io};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::progress::{Progress, Style};

/// The format of standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Tables and sentences for people.
    #[default]
    Table,
    /// proto3 JSON; a stream is a line of JSON for each message.
    Json,
}

/// Writes a command's results and messages.
#[derive(Clone, Debug)]
pub struct Output {
    format: Format,
    quiet: bool,
    style: Style,
    colour: bool,
}

impl Output {
    /// Chooses animation and colour from the terminal and the environment: both need a terminal,
    /// and NO_COLOR turns colour off.
    pub fn new(format: Format, quiet: bool, no_color: bool) -> Self {
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let no_color = no_color || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let able = |terminal: bool| terminal && !dumb;
        Self {
            format,
            quiet,
            style: style(quiet, able(io::stderr().is_terminal()), !no_color),
            colour: able(io::stdout().is_terminal() && io::stderr().is_terminal()) && !no_color,
        }
    }

    /// Whether JSON was asked for.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether standard error is a terminal that shows a progress bar.
    pub fn is_interactive(&self) -> bool {
        matches!(self.style, Style::Bar { .. })
    }

    /// Writes one message as a line of JSON.
    pub fn json<T: Serialize>(&self, message: &T) -> Result<()> {
        let line = serde_json::to_string(message).map_err(|error| Error::Terminal(error.into()))?;
        self.line(&line)
    }

    /// Writes lines of data.
    pub fn lines<I: IntoIterator<Item = String>>(&self, lines: I) -> Result<()> {
        let mut stdout = io::stdout().lock();
        for line in lines {
            writeln!(stdout, "{line}")?;
        }
        stdout.flush()?;
        Ok(())
    }

    /// Writes one line of data.
    pub fn line(&self, line: &str) -> Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// Writes text unchanged and flushes it.
    pub fn text(&self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
    }

    /// Writes one message: as JSON, or as the lines that `lines` makes of it.
    pub fn one<T: Serialize>(
        &self,
        message: &T,
        lines: impl FnOnce(&T) -> Vec<String>,
    ) -> Result<()> {
        match self.format {
            Format::Json => self.json(message),
            Format::Table => self.lines(lines(message)),
        }
    }

    /// Prints a message on standard error, unless it is empty or `--quiet` was given; a failure to
    /// write is ignored.
    pub fn say(&self, message: impl fmt::Display) {
        let message = message.to_string();
        if !self.quiet && !message.is_empty() {
            let _ = writeln!(io::stderr().lock(), "{message}");
        }
    }

    /// Starts showing the progress of something that takes over a second.
    pub fn progress(&self, what: &str) -> Progress {
        Progress::new(self.style, what)
    }

    /// Emphasises text for the terminal.
    pub fn bold(&self, text: &str) -> String {
        self.sgr("1", text)
    }

    /// Marks text as good.
    pub fn green(&self, text: &str) -> String {
        self.sgr("32", text)
    }

    /// Marks text as bad.
    pub fn red(&self, text: &str) -> String {
        self.sgr("31", text)
    }

    /// Dims text.
    pub fn dim(&self, text: &str) -> String {
        self.sgr("2", text)
    }

    fn sgr(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Chooses how progress is shown.
fn style(quiet: bool, animated: bool, colour: bool) -> Style {
    match (quiet, animated) {
        (true, _) => Style::None,
        (false, false) => Style::Lines,
        (false, true) => Style::Bar { colour },
    }
}

/// Prints a command's error on standard error: its sentence, and its deepest cause in brackets if
/// the sentence does not contain it.
pub fn complain(error: &Error) {
    let mut deepest = std::error::Error::source(error);
    while let Some(deeper) = deepest.and_then(std::error::Error::source) {
        deepest = Some(deeper);
    }
    let sentence = error.to_string();
    let cause = deepest
        .map(ToString::to_string)
        .filter(|cause| !sentence.contains(cause));
    let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
    let mark = if matches!(error, Error::Interrupted(_)) {
        ""
    } else {
        "error: "
    };
    let _ = writeln!(io::stderr().lock(), "{mark}{sentence}{cause}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn animation_needs_a_terminal_and_colour_permission() {
        assert_eq!(style(false, true, true), Style::Bar { colour: true });
        assert_eq!(style(false, true, false), Style::Bar { colour: false });
        assert_eq!(style(false, false, true), Style::Lines);
        assert_eq!(style(true, true, true), Style::None);
    }
}
