//! Numbered lines of a file or of standard input: plain, or JSON Lines of texts and token ids.

use std::fs::File;
use std::io;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// Reads lines as they come.
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    number: usize,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, from 1.
    pub number: usize,
    /// Its content, without the line feed.
    pub content: String,
    path: PathBuf,
}

impl Lines {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(path: &Path) -> Result<Self> {
        let reader: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            let file = File::open(path).map_err(|error| Error::file(path, error))?;
            Box::new(BufReader::with_capacity(64 << 10, file))
        };
        Ok(Self {
            path: path.to_owned(),
            reader,
            number: 0,
        })
    }

    fn read(&mut self) -> Result<Option<Line>> {
        let mut bytes = Vec::new();
        let read = self.reader.read_until(b'\n', &mut bytes);
        if read.map_err(|error| Error::file(&self.path, error))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        bytes.pop_if(|last| *last == b'\n');
        if self.number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        let content = String::from_utf8(bytes)
            .map_err(|_| wrong(&self.path, self.number, "the line is not UTF-8"))?;
        Ok(Some(Line {
            number: self.number,
            content,
            path: self.path.clone(),
        }))
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Result<Line>> {
        self.read().transpose()
    }
}

impl Line {
    /// Whether the line is blank; JSON Lines skip it.
    pub fn is_blank(&self) -> bool {
        self.content.trim().is_empty()
    }

    /// Reads the line as a text: a JSON string, or an object's `text`.
    ///
    /// # Errors
    /// [`Error::Configuration`] with file and line, as for the other readers.
    pub fn text(&self) -> Result<String> {
        match self.value("text")? {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong("expected a text, or an object with a text in \"text\"")),
        }
    }

    /// Reads the line as token ids: a JSON array, or an object's `ids`.
    pub fn ids(&self) -> Result<Vec<u32>> {
        let value = self.value("ids")?;
        serde_json::from_value(value)
            .map_err(|_| self.wrong("expected token ids, or an object with token ids in \"ids\""))
    }

    /// Returns the error of this line.
    pub fn wrong(&self, reason: &str) -> Error {
        wrong(&self.path, self.number, reason)
    }

    /// Returns the line's value, or the member of an object.
    fn value(&self, member: &str) -> Result<Value> {
        let value = serde_json::from_str(&self.content)
            .map_err(|error| self.wrong(&format!("not JSON: {error}")))?;
        match value {
            Value::Object(mut object) => Ok(object.remove(member).unwrap_or(Value::Null)),
            other => Ok(other),
        }
    }
}

fn wrong(path: &Path, number: usize, reason: &str) -> Error {
    Error::Configuration(format!("{}:{number}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<Result<Line>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Lines::open(file.path()).unwrap().collect()
    }

    #[test]
    fn texts_and_ids_come_plain_or_in_an_object() {
        let text = "\u{feff}\"a\\nb\"\n\n{\"text\": \"c\", \"more\": 1}\n[1, 2]\n{\"ids\": []}";
        let lines: Vec<Line> = lines(text.as_bytes())
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(lines[0].text().unwrap(), "a\nb");
        assert!(lines[1].is_blank());
        assert_eq!(
            (lines[2].number, lines[2].text().unwrap().as_str()),
            (3, "c")
        );
        assert_eq!(lines[3].ids().unwrap(), [1, 2]);
        assert!(lines[4].ids().unwrap().is_empty());
    }

    #[test]
    fn only_the_line_feed_is_taken_off() {
        let lines = lines(b" a \r\nb\n");
        let contents: Vec<&str> = lines
            .iter()
            .map(|line| line.as_ref().unwrap().content.as_str())
            .collect();
        assert_eq!(contents, [" a \r", "b"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let lines = lines(b"1\n{\"ids\": [-1]}\n{\n\xff\n{\"text\": 1}");
        let wrong = [
            lines[0].as_ref().unwrap().text().unwrap_err(),
            lines[1].as_ref().unwrap().ids().unwrap_err(),
            lines[2].as_ref().unwrap().ids().unwrap_err(),
        ];
        for (number, error) in wrong.iter().enumerate() {
            assert_eq!(error.exit_code(), 64);
            let place = format!(":{}: ", number + 1);
            assert!(error.to_string().contains(&place), "{error}");
        }
        let not_utf8 = lines[3].as_ref().unwrap_err().to_string();
        assert!(
            not_utf8.ends_with(":4: the line is not UTF-8"),
            "{not_utf8}"
        );
        assert!(lines[4].as_ref().unwrap().text().is_err());
    }
}
