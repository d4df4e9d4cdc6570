//! From a `GenerateRequest` to a valid request: checked field by field, with the defaults filled
//! in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use togi_model::sampling;
use togi_proto::inference::v1 as proto;
use togi_tokens::prompt;

use crate::engine::options::Options;
use crate::engine::request::{Answerer, Priority, Request};
use crate::error::{Error, Result};

/// What a request may ask of a base.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A longer prompt is refused before anything is done with it.
    pub(crate) max_prompt_bytes: usize,
    /// Ids of tokens are below.
    pub(crate) vocab_size: usize,
    /// Most tokens of a sequence.
    pub(crate) longest: usize,
}

/// Checks a request.
///
/// # Errors
/// [`Error::Field`] naming the first wrong field.
pub(crate) fn request(request: proto::GenerateRequest, limits: Limits) -> Result<Request> {
    let Limits {
        max_prompt_bytes,
        vocab_size,
        longest,
    } = limits;
    let answerer = Answerer::from_name(&request.adapter)?;
    let (priority, max_time) = urgency(request.options.as_ref())?;
    check_longest(request.options.as_ref(), longest)?;
    let options = options(request.options).checked(vocab_size)?;
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
            let (instruction, input) = (&parts.instruction, &parts.input);
            let bytes = instruction.len().saturating_add(input.len());
            check(
                "instruction.instruction",
                instruction,
                bytes,
                max_prompt_bytes,
            )?;
            ("instruction", prompt::generation(instruction, input))
        }
    };
    Ok(Request {
        answerer,
        prompt,
        prompt_field,
        options,
        priority,
        max_time,
    })
}

/// Reads how urgent a request is, and the longest time until its answer's end.
fn urgency(options: Option<&proto::Options>) -> Result<(Priority, Option<Duration>)> {
    let Some(options) = options else {
        return Ok(Default::default());
    };
    let priority = match proto::Priority::try_from(options.priority) {
        Ok(proto::Priority::Unspecified | proto::Priority::Interactive) => Priority::Interactive,
        Ok(proto::Priority::Batch) => Priority::Batch,
        Err(_) => {
            let reason = format!("{} is no priority", options.priority);
            return Err(Error::field("options.priority", reason));
        }
    };
    let Some(seconds) = options.max_seconds else {
        return Ok((priority, None));
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok((priority, Some(time))),
        _ => {
            let reason = format!("must be over 0 and finite, not {seconds}");
            Err(Error::field("options.max_seconds", reason))
        }
    }
}

/// A wish for more tokens than any answer can have is a mistake. The default may be more.
fn check_longest(options: Option<&proto::Options>, longest: usize) -> Result<()> {
    match options.and_then(|options| options.max_new_tokens) {
        Some(tokens) if tokens as usize > longest => {
            let reason =
                format!("must be from 1 to {longest}, the model's longest sequence, not {tokens}");
            Err(Error::field("options.max_new_tokens", reason))
        }
        _ => Ok(()),
    }
}

/// Fills in the defaults.
fn options(options: Option<proto::Options>) -> Options {
    let proto::Options {
        temperature,
        top_p,
        top_k,
        no_repeat_ngram_size,
        repetition_penalty,
        max_new_tokens,
        seed,
        greedy,
        stop,
        min_new_tokens,
        ignore_eos,
        presence_penalty,
        frequency_penalty,
        logit_bias,
        stop_token_ids,
        logprobs,
        prompt_logprobs,
        n,
        max_seconds: _,
        priority: _,
    } = options.unwrap_or_default();
    let default = sampling::Options::default();
    let sampling = sampling::Options {
        temperature: temperature.unwrap_or(default.temperature),
        top_p: top_p.unwrap_or(default.top_p),
        top_k: top_k.unwrap_or(default.top_k),
        no_repeat_ngram_size: no_repeat_ngram_size.unwrap_or(default.no_repeat_ngram_size),
        repetition_penalty: repetition_penalty.unwrap_or(default.repetition_penalty),
        max_new_tokens: max_new_tokens.unwrap_or(default.max_new_tokens),
        seed: seed.unwrap_or_else(seed_from_clock),
        greedy: greedy.unwrap_or(default.greedy),
        min_new_tokens: min_new_tokens.unwrap_or(default.min_new_tokens),
        ignore_eos: ignore_eos.unwrap_or(default.ignore_eos),
        presence_penalty: presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: frequency_penalty.unwrap_or(default.frequency_penalty),
        logit_bias: logit_bias.into_iter().collect(),
        stop_token_ids,
        logprobs,
        prompt_logprobs,
    };
    Options {
        sampling,
        stop,
        choices: n.unwrap_or(1),
    }
}

fn check(field: &'static str, text: &str, bytes: usize, max_bytes: usize) -> Result<()> {
    if text.trim().is_empty() {
        return Err(Error::field(field, "must not be empty"));
    }
    if bytes > max_bytes {
        let reason = format!("at most {max_bytes} bytes, not {bytes}");
        return Err(Error::field(field, reason));
    }
    Ok(())
}

fn seed_from_clock() -> u64 {
    // Nanoseconds since 1970 fit in 64 bits until 2554; a clock before 1970 seeds with 0.
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use togi_proto::inference::v1::generate_request::Prompt;

    use super::*;

    fn parse(prompt: Option<Prompt>, options: Option<proto::Options>) -> Result<Request> {
        let message = proto::GenerateRequest {
            adapter: String::new(),
            prompt,
            options,
        };
        let limits = Limits {
            max_prompt_bytes: 100,
            vocab_size: 100,
            longest: 512,
        };
        request(message, limits)
    }

    fn instruction(instruction: &str, input: &str) -> Option<Prompt> {
        Some(Prompt::Instruction(proto::Instruction {
            instruction: instruction.into(),
            input: input.into(),
        }))
    }

    #[test]
    fn newlines_become_nl_in_both_forms() {
        let raw = parse(Some(Prompt::Raw("一\n二".into())), None).unwrap();
        assert_eq!(raw.prompt, "一<NL>二");
        let parts = parse(instruction("一\n二", "三"), None).unwrap();
        assert_eq!(parts.prompt, prompt::generation("一\n二", "三"));
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
            match parse(prompt.clone(), None) {
                Err(Error::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{prompt:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn nothing_set_means_the_defaults_of_the_report() {
        let Options {
            sampling,
            stop,
            choices,
        } = options(None);
        assert_eq!(choices, 1);
        assert_eq!(
            (sampling.temperature, sampling.top_p, sampling.top_k),
            (0.7, 0.75, 40)
        );
        assert_eq!(
            (sampling.no_repeat_ngram_size, sampling.max_new_tokens),
            (2, 256)
        );
        assert_eq!((sampling.repetition_penalty, sampling.greedy), (1.0, false));
        assert!(stop.is_empty() && sampling.seed > 0);
    }

    #[test]
    fn zeros_that_are_set_replace_the_defaults() {
        let zeros = proto::Options {
            top_p: Some(0.0),
            top_k: Some(0),
            no_repeat_ngram_size: Some(0),
            seed: Some(0),
            ..Default::default()
        };
        let sampling = options(Some(zeros)).sampling;
        assert_eq!(
            (
                sampling.top_p,
                sampling.top_k,
                sampling.no_repeat_ngram_size,
                sampling.seed
            ),
            (0.0, 0, 0, 0)
        );
    }

    #[test]
    fn a_wrong_option_is_refused_by_its_path() {
        let wrong = |set: fn(&mut proto::Options)| {
            let mut options = proto::Options::default();
            set(&mut options);
            options
        };
        let table = [
            ("options.top_p", wrong(|o| o.top_p = Some(2.0))),
            ("options.max_seconds", wrong(|o| o.max_seconds = Some(0.0))),
            ("options.max_seconds", wrong(|o| o.max_seconds = Some(-1.0))),
            (
                "options.max_seconds",
                wrong(|o| o.max_seconds = Some(f64::NAN)),
            ),
            ("options.priority", wrong(|o| o.priority = 9)),
        ];
        for (expected, options) in table {
            match parse(instruction("問", ""), Some(options)) {
                Err(Error::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_request_is_interactive_and_has_all_time_unless_it_says_otherwise() {
        let plain = parse(instruction("問", ""), None).unwrap();
        assert_eq!(
            (plain.priority, plain.max_time),
            (Priority::Interactive, None)
        );
        let options = proto::Options {
            priority: proto::Priority::Batch.into(),
            max_seconds: Some(1.5),
            ..Default::default()
        };
        let batch = parse(instruction("問", ""), Some(options)).unwrap();
        let time = Duration::from_millis(1500);
        assert_eq!(
            (batch.priority, batch.max_time),
            (Priority::Batch, Some(time))
        );
    }
}
