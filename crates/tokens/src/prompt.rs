//! The prompt: the template of training and of answering, and `<NL>`, which stands for a newline.

use std::sync::LazyLock;

use togi_common::Hasher;

use crate::record::Record;

/// Stands for a newline in prompts and answers.
pub const NEWLINE: &str = "<NL>";

const INSTRUCTION: &str = "### 指示:\n";
const INPUT: &str = "\n\n### 入力:\n";
const ANSWER: &str = "\n\n### 回答:\n";

/// A record's text and where its answer starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templated {
    /// The whole text: prompt, then answer.
    pub text: String,
    /// The byte at which the answer starts.
    pub answer_start: usize,
}

/// Returns the text that a record is trained on: its prompt and its answer, without the
/// end-of-sequence id.
pub fn training(record: &Record) -> Templated {
    let mut text = generation(&record.instruction, &record.input);
    let answer_start = text.len();
    push_escaped(&mut text, &record.output);
    Templated { text, answer_start }
}

/// Returns the prompt of an answer. Training texts begin with exactly this.
pub fn generation(instruction: &str, input: &str) -> String {
    let mut text = String::with_capacity(instruction.len() + input.len() + 96);
    push_escaped(&mut text, INSTRUCTION);
    push_escaped(&mut text, instruction);
    if !input.is_empty() {
        push_escaped(&mut text, INPUT);
        push_escaped(&mut text, input);
    }
    push_escaped(&mut text, ANSWER);
    text
}

/// Returns a text with `<NL>` for every newline.
pub fn escape_newlines(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    push_escaped(&mut escaped, text);
    escaped
}

/// Returns a text with a newline for every `<NL>`.
pub fn unescape_newlines(text: &str) -> String {
    text.replace(NEWLINE, "\n")
}

/// Returns the digest of the template's parts as 64 lower-case hex digits.
pub fn template_digest() -> &'static str {
    static DIGEST: LazyLock<String> =
        LazyLock::new(|| digest_of([INSTRUCTION, INPUT, ANSWER, NEWLINE]));
    &DIGEST
}

fn digest_of(parts: [&str; 4]) -> String {
    let mut hasher = Hasher::new();
    hasher.update(b"togi template v1");
    for part in parts {
        hasher.frame(part);
    }
    hasher.finish().to_string()
}

fn push_escaped(text: &mut String, part: &str) {
    let mut lines = part.split('\n');
    text.push_str(lines.next().unwrap_or_default());
    for line in lines {
        text.push_str(NEWLINE);
        text.push_str(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_starts_with_generation() {
        let mut record = Record {
            instruction: "要約して\nください".into(),
            input: "本文\n".into(),
            output: "一行目\n二行目".into(),
            category: String::new(),
            index: String::new(),
        };
        let training_text = training(&record);
        assert_eq!(
            training_text.text,
            "### 指示:<NL>要約して<NL>ください<NL><NL>### 入力:<NL>本文<NL><NL><NL>### 回答:<NL>一行目<NL>二行目"
        );
        assert_eq!(
            &training_text.text[training_text.answer_start..],
            "一行目<NL>二行目"
        );
        assert_eq!(
            &training_text.text[..training_text.answer_start],
            generation(&record.instruction, &record.input)
        );
        record.input.clear();
        assert!(!training(&record).text.contains("入力"));
    }

    #[test]
    fn newlines_survive_both_ways() {
        let text = "a\n\nb<N\n";
        assert_eq!(unescape_newlines(&escape_newlines(text)), text);
    }

    #[test]
    fn a_change_of_any_part_changes_the_template_digest() {
        let parts = [INSTRUCTION, INPUT, ANSWER, NEWLINE];
        assert_eq!(digest_of(parts), template_digest());
        for at in 0..parts.len() {
            let longer = format!("{} ", parts[at]);
            let mut changed = parts;
            changed[at] = &longer;
            assert_ne!(digest_of(changed), template_digest(), "part {at}");
        }
        // The same text in other parts.
        assert_ne!(digest_of(["a", "b", "", ""]), digest_of(["ab", "", "", ""]));
    }

    #[test]
    fn template_is_pinned() {
        assert_eq!(template_digest().len(), 64);
        assert!(!generation("q", "").contains('\n'));
    }
}
