//! A request, checked: who shall answer, the prompt's text, the options. Protobuf types end here.

use togi_proto::inference::v1 as proto;
use togi_runtime::layout;
use togi_tokens::prompt;

use crate::engine::options::Options;
use crate::error::{Error, Result};

/// A valid question; only the prompt's length in tokens is still to be checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    pub(crate) answerer: Answerer,
    /// The whole prompt, newlines written `<NL>`.
    pub(crate) prompt: String,
    /// The field that the prompt came in, for errors about it.
    pub(crate) prompt_field: &'static str,
    pub(crate) options: Options,
}

/// Who shall answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// The base alone.
    Base,
    /// What the alias names when the request arrives.
    Alias(String),
    /// This generation.
    Generation(String),
}

impl Answerer {
    fn from_name(name: String) -> Result<Answerer> {
        if name.is_empty() {
            return Ok(Answerer::Base);
        }
        if is_digest(&name) {
            return Ok(Answerer::Generation(name));
        }
        layout::validate_name("adapter", &name)?;
        Ok(Answerer::Alias(name))
    }

    /// What the request named; empty for the base.
    pub(crate) fn name(&self) -> &str {
        match self {
            Answerer::Base => "",
            Answerer::Alias(name) | Answerer::Generation(name) => name,
        }
    }
}

impl Question {
    /// Checks a request. Prompts of more than `max_prompt_bytes` are refused before anything is done with them.
    ///
    /// # Errors
    /// [`Error::Field`] naming the first wrong field.
    pub(crate) fn from_request(
        request: proto::GenerateRequest,
        max_prompt_bytes: usize,
    ) -> Result<Question> {
        let answerer = Answerer::from_name(request.adapter)?;
        let options = Options::from_request(request.options)?;
        let (prompt_field, prompt) = match request.prompt {
            None => {
                return Err(Error::field(
                    "prompt",
                    "one of instruction and raw must be set",
                ));
            }
            Some(proto::generate_request::Prompt::Raw(raw)) => {
                check("raw", &raw, raw.len(), max_prompt_bytes)?;
                ("raw", prompt::escape_newlines(&raw))
            }
            Some(proto::generate_request::Prompt::Instruction(parts)) => {
                let bytes = parts.instruction.len().saturating_add(parts.input.len());
                check(
                    "instruction.instruction",
                    &parts.instruction,
                    bytes,
                    max_prompt_bytes,
                )?;
                (
                    "instruction",
                    prompt::generation(&parts.instruction, &parts.input),
                )
            }
        };
        Ok(Question {
            answerer,
            prompt,
            prompt_field,
            options,
        })
    }
}

fn check(field: &'static str, text: &str, bytes: usize, max_bytes: usize) -> Result<()> {
    if text.trim().is_empty() {
        return Err(Error::field(field, "must not be empty"));
    }
    if bytes > max_bytes {
        return Err(Error::field(
            field,
            format!("at most {max_bytes} bytes, not {bytes}"),
        ));
    }
    Ok(())
}

/// Whether a name has a generation's form: 64 lower-case hex digits.
pub(crate) fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use togi_proto::inference::v1::generate_request::Prompt;

    use super::*;

    fn ask(adapter: &str, prompt: Option<Prompt>) -> Result<Question> {
        let request = proto::GenerateRequest {
            adapter: adapter.into(),
            prompt,
            options: None,
        };
        Question::from_request(request, 100)
    }

    fn instruction(instruction: &str, input: &str) -> Option<Prompt> {
        Some(Prompt::Instruction(proto::Instruction {
            instruction: instruction.into(),
            input: input.into(),
        }))
    }

    #[test]
    fn names_with_slashes_and_dots_are_refused() {
        for name in ["a/b", "..", "../x", "a..b/", "a b", "あ", &"x".repeat(300)] {
            let error = ask(name, instruction("問", "")).unwrap_err();
            assert_eq!(
                error.class(),
                togi_runtime::error::Class::InvalidArgument,
                "{name}: {error}"
            );
            assert!(error.to_string().contains("adapter"), "{error}");
        }
    }

    #[test]
    fn a_digest_names_a_generation_and_all_else_an_alias() {
        let digest = "0123456789abcdef".repeat(4);
        let question = ask(&digest, instruction("問", "")).unwrap();
        assert_eq!(question.answerer, Answerer::Generation(digest));
        assert_eq!(
            ask("", instruction("問", "")).unwrap().answerer,
            Answerer::Base
        );
        let question = ask("demo", instruction("問", "")).unwrap();
        assert_eq!(question.answerer, Answerer::Alias("demo".into()));
    }

    #[test]
    fn newlines_become_nl_in_both_forms() {
        let question = ask("", Some(Prompt::Raw("一\n二".into()))).unwrap();
        assert_eq!(question.prompt, "一<NL>二");
        let question = ask("", instruction("一\n二", "三")).unwrap();
        assert_eq!(question.prompt, prompt::generation("一\n二", "三"));
    }

    #[test]
    fn empty_and_huge_prompts_are_refused_by_field() {
        let table = [
            ("prompt", None),
            ("raw", Some(Prompt::Raw(" \n".into()))),
            ("raw", Some(Prompt::Raw("x".repeat(101)))),
            ("instruction.instruction", instruction("", "材料")),
            (
                "instruction.instruction",
                instruction("問", &"x".repeat(98)),
            ),
        ];
        for (expected, prompt) in table {
            match ask("", prompt.clone()) {
                Err(Error::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{prompt:?} gave {other:?}"),
            }
        }
    }
}
