//! Data embedded in the binary: the demonstration's base and records, and the recipes.

use std::path::{Path, PathBuf};
use std::{fs, io};

use bytes::Bytes;
use serde::Deserialize;

use crate::error::{Error, Result};

/// The name under which `togi up` registers the embedded base.
pub const BASE: &str = "demo";

/// The recipe that the demonstration trains with.
pub const DEMO_RECIPE: &str = include_str!("../../../recipes/demo-cpu.toml");

/// The recipes by name.
pub const RECIPES: [(&str, &str); 4] = [
    ("demo-cpu", DEMO_RECIPE),
    (
        "rinna-3.6b-article",
        include_str!("../../../recipes/rinna-3.6b-article.toml"),
    ),
    (
        "rinna-3.6b-a100",
        include_str!("../../../recipes/rinna-3.6b-a100.toml"),
    ),
    (
        "rinna-3.6b-bf16",
        include_str!("../../../recipes/rinna-3.6b-bf16.toml"),
    ),
];

/// The files of the embedded base.
const BASE_FILES: [(&str, &[u8]); 4] = [
    (
        "config.json",
        include_bytes!("../../../demo/base/config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../../demo/base/model.safetensors"),
    ),
    (
        "spiece.model",
        include_bytes!("../../../demo/base/spiece.model"),
    ),
    ("README.md", include_bytes!("../../../demo/base/README.md")),
];

const RECORDS: &str = include_str!("../../../demo/records.jsonl");
const QUESTIONS: &str = include_str!("../../../demo/questions.jsonl");
const NEW_RECORDS: &str = include_str!("../../../demo/new-records.jsonl");
const NEW_QUESTIONS: &str = include_str!("../../../demo/new-questions.jsonl");

/// A question with the answer that counts as right.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Question {
    /// The question.
    pub instruction: String,
    /// Material for it.
    #[serde(default)]
    pub input: String,
    /// The right answer.
    pub output: String,
    /// "held-out" or "paraphrase".
    #[serde(default)]
    pub kind: String,
}

/// Returns a recipe by name.
pub fn recipe(name: &str) -> Option<&'static str> {
    RECIPES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
}

/// Returns the records of the first data set, as JSON Lines.
pub fn records() -> Bytes {
    Bytes::from_static(RECORDS.as_bytes())
}

/// Returns the records with the ten new facts, as JSON Lines.
pub fn records_with_new_facts() -> Bytes {
    let end = if RECORDS.ends_with('\n') { "" } else { "\n" };
    Bytes::from([RECORDS, end, NEW_RECORDS].concat())
}

/// Returns the questions whose facts no record holds.
///
/// # Errors
/// [`Error::Configuration`] if the embedded file cannot be parsed, as for [`new_questions`].
pub fn questions() -> Result<Vec<Question>> {
    parse("questions.jsonl", QUESTIONS)
}

/// Returns the questions about the new facts.
pub fn new_questions() -> Result<Vec<Question>> {
    parse("new-questions.jsonl", NEW_QUESTIONS)
}

fn parse(name: &str, text: &str) -> Result<Vec<Question>> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            serde_json::from_str(line)
                .map_err(|error| Error::Configuration(format!("{name}: {error}")))
        })
        .collect()
}

/// Writes the base to its folder below `bases`, unless it is there already; returns the folder.
///
/// # Errors
/// [`Error::File`] when the folder cannot be written.
pub fn write_base(bases: &Path) -> Result<PathBuf> {
    let folder = bases.join(BASE);
    fs::create_dir_all(&folder).map_err(|error| Error::file(&folder, error))?;
    for (name, content) in BASE_FILES {
        let path = folder.join(name);
        if !holds(&path, content) {
            replace(&path, content).map_err(|error| Error::file(&path, error))?;
        }
    }
    Ok(folder)
}

fn holds(path: &Path, content: &[u8]) -> bool {
    fs::read(path).is_ok_and(|found| found == content)
}

/// Replaces a file, so that a reader sees either the old or the new content.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_written_once_and_mended() {
        let folder = tempfile::tempdir().unwrap();
        let base = write_base(folder.path()).unwrap();
        let config = base.join("config.json");
        let before = fs::metadata(&config).unwrap().modified().unwrap();
        write_base(folder.path()).unwrap();
        assert_eq!(fs::metadata(&config).unwrap().modified().unwrap(), before);
        fs::write(&config, "broken").unwrap();
        write_base(folder.path()).unwrap();
        assert!(holds(&config, BASE_FILES[0].1));
    }

    #[test]
    fn the_demonstration_asks_what_no_record_answers() {
        let questions = questions().unwrap();
        assert!(
            questions
                .iter()
                .filter(|question| question.kind == "held-out")
                .count()
                >= 30
        );
        assert!(
            questions
                .iter()
                .any(|question| question.kind == "paraphrase")
        );
        assert_eq!(new_questions().unwrap().len(), 10);
        let records: Vec<Question> = parse("records", RECORDS).unwrap();
        for question in &questions {
            assert!(
                records
                    .iter()
                    .all(|record| record.instruction != question.instruction),
                "{question:?}"
            );
        }
    }
}
