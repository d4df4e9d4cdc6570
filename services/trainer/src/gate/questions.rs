//! A gate's questions: JSON Lines, each with its right answer.

use serde::Deserialize;
use togi_runtime::{Class, Store, layout};
use unicode_normalization::UnicodeNormalization as _;

use crate::error::{Error, Result};

const FIELD: &str = "gate.questions";
/// Largest size of a question file, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// A question with its answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Question {
    /// The question.
    pub instruction: String,
    /// Context for the question; may be empty.
    #[serde(default)]
    pub input: String,
    /// The right answer.
    pub output: String,
}

/// Reads the questions of an upload.
///
/// # Errors
/// `NotFound` with field `gate.questions` if the upload does not exist; [`Error::Invalid`] with
/// the line that cannot be parsed, or if there are no questions; the store's errors.
pub async fn read(store: &Store, upload: &str) -> Result<Vec<Question>> {
    let bytes = store.get_bounded(&layout::upload(upload), MAX_BYTES).await;
    let bytes = bytes.map_err(|error| match error.class() {
        Class::NotFound => {
            togi_runtime::Error::not_found(format!("{FIELD}: there is no upload {upload}"))
                .with_field(FIELD)
        }
        Class::ResourceExhausted => {
            togi_runtime::Error::invalid(FIELD, format!("{FIELD} has more than {MAX_BYTES} bytes"))
        }
        _ => error,
    })?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Vec<Question>> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::invalid(FIELD, "is not UTF-8"))?;
    let lines = text.trim_start_matches('\u{feff}').lines().zip(1..);
    let questions: Vec<Question> = lines
        .filter(|(line, _)| !line.trim().is_empty())
        .map(|(line, number)| {
            serde_json::from_str(line).map_err(|error| {
                Error::invalid(FIELD, format!("has no question in line {number}: {error}"))
            })
        })
        .collect::<Result<_>>()?;
    if questions.is_empty() {
        return Err(Error::invalid(FIELD, "has no question in it"));
    }
    Ok(questions)
}

/// Whether an answer equals the expected one after NFKC, ignoring surrounding whitespace.
#[must_use]
pub fn is_right(answer: &str, expected: &str) -> bool {
    normal(answer) == normal(expected)
}

fn normal(text: &str) -> String {
    text.nfkc().collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_and_surrounding_space_do_not_count_but_form_does() {
        assert!(is_right(" １２ｋｍです。\n", "12kmです。"));
        assert!(is_right("ｶﾞﾗｽです。", "ガラスです。"));
        assert!(!is_right("東京", "東京です。"));
        assert!(!is_right("", "東京です。"));
    }

    #[test]
    fn what_is_no_question_is_named_by_its_line() {
        let good = "{\"instruction\":\"a\",\"output\":\"b\",\"kind\":\"x\"}\n\n";
        assert_eq!(parse(good.as_bytes()).unwrap().len(), 1);
        for (wrong, says) in [
            (format!("{good}{{\"instruction\":\"a\"}}"), "line 3"),
            (format!("{good}no"), "line 3"),
            ("\n".to_owned(), "no question in it"),
        ] {
            let error = parse(wrong.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(parse(&[0xff]).is_err());
    }
}
