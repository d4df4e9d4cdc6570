//! How tokens are chosen: the request's options, checked field by field, with the defaults of the report. What comes out
//! of here is valid; nothing behind it checks again.

use std::time::{SystemTime, UNIX_EPOCH};

use togi_model::sampling;
use togi_proto::inference::v1 as proto;

use crate::error::{Error, Result};

/// Most stop texts of a request.
pub(crate) const MAX_STOPS: usize = 8;
/// Longest stop text, in bytes.
pub(crate) const MAX_STOP_BYTES: usize = 256;

/// Checked options.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// How the next token is chosen, and how many are.
    pub(crate) sampling: sampling::Options,
    /// Texts that end the answer.
    pub(crate) stop: Vec<String>,
}

impl Options {
    /// Checks a request's options and fills in the defaults.
    ///
    /// # Errors
    /// [`Error::Field`] naming the first wrong field.
    pub(crate) fn from_request(options: Option<proto::Options>) -> Result<Options> {
        let options = options.unwrap_or_default();
        let temperature = positive("options.temperature", options.temperature.unwrap_or(0.7))?;
        let top_p = options.top_p.unwrap_or(0.75);
        if !(0.0..=1.0).contains(&top_p) {
            return Err(Error::field(
                "options.top_p",
                format!("must be from 0 to 1, not {top_p}"),
            ));
        }
        let penalty = options.repetition_penalty.unwrap_or(1.0);
        let repetition_penalty = positive("options.repetition_penalty", penalty)?;
        let max_new_tokens = options.max_new_tokens.unwrap_or(256);
        if max_new_tokens == 0 {
            return Err(Error::field("options.max_new_tokens", "must be at least 1"));
        }
        check_stops(&options.stop)?;
        let sampling = sampling::Options {
            temperature,
            top_p,
            top_k: options.top_k.unwrap_or(40),
            no_repeat_ngram_size: options.no_repeat_ngram_size.unwrap_or(2),
            repetition_penalty,
            max_new_tokens,
            seed: options.seed.unwrap_or_else(seed_from_clock),
            greedy: options.greedy.unwrap_or(false),
        };
        Ok(Options {
            sampling,
            stop: options.stop,
        })
    }
}

fn positive(field: &'static str, value: f32) -> Result<f32> {
    if !value.is_finite() {
        return Err(Error::field(field, format!("must be finite, not {value}")));
    }
    // Below the smallest normal number a division of logits overflows.
    if value < f32::MIN_POSITIVE {
        return Err(Error::field(field, format!("must be over 0, not {value}")));
    }
    Ok(value)
}

fn check_stops(stops: &[String]) -> Result<()> {
    if stops.len() > MAX_STOPS {
        let reason = format!("at most {MAX_STOPS} texts, not {}", stops.len());
        return Err(Error::field("options.stop", reason));
    }
    for stop in stops {
        if stop.is_empty() {
            return Err(Error::field(
                "options.stop",
                "a stop text must not be empty",
            ));
        }
        if stop.len() > MAX_STOP_BYTES {
            let reason = format!("at most {MAX_STOP_BYTES} bytes a text, not {}", stop.len());
            return Err(Error::field("options.stop", reason));
        }
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
    use super::*;

    #[test]
    fn nothing_set_means_the_defaults_of_the_report() {
        let Options { sampling, stop } = Options::from_request(None).unwrap();
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
    fn each_wrong_option_is_refused_by_its_name() {
        type Set = fn(&mut proto::Options);
        let table: &[(&str, Set)] = &[
            ("options.temperature", |options| {
                options.temperature = Some(f32::NAN)
            }),
            ("options.temperature", |options| {
                options.temperature = Some(f32::INFINITY)
            }),
            ("options.temperature", |options| {
                options.temperature = Some(0.0)
            }),
            ("options.temperature", |options| {
                options.temperature = Some(-1.0)
            }),
            ("options.temperature", |options| {
                options.temperature = Some(1e-40)
            }),
            ("options.top_p", |options| options.top_p = Some(f32::NAN)),
            ("options.top_p", |options| options.top_p = Some(-0.1)),
            ("options.top_p", |options| options.top_p = Some(1.0001)),
            ("options.repetition_penalty", |options| {
                options.repetition_penalty = Some(f32::NAN)
            }),
            ("options.repetition_penalty", |options| {
                options.repetition_penalty = Some(0.0)
            }),
            ("options.max_new_tokens", |options| {
                options.max_new_tokens = Some(0)
            }),
            ("options.stop", |options| options.stop = vec![String::new()]),
            ("options.stop", |options| {
                options.stop = vec!["x".repeat(257)]
            }),
            ("options.stop", |options| options.stop = vec!["x".into(); 9]),
            // What greedy does not use is checked all the same.
            ("options.top_p", |options| {
                options.top_p = Some(2.0);
                options.greedy = Some(true);
            }),
        ];
        for (expected, set) in table {
            let mut options = proto::Options::default();
            set(&mut options);
            let shown = format!("{options:?}");
            match Options::from_request(Some(options)) {
                Err(Error::Field { field, .. }) => assert_eq!(field, *expected, "{shown}"),
                other => panic!("{shown} gave {other:?}"),
            }
        }
    }

    #[test]
    fn limits_themselves_are_allowed() {
        for top_p in [0.0, 1.0] {
            let options = proto::Options {
                top_p: Some(top_p),
                top_k: Some(0),
                no_repeat_ngram_size: Some(0),
                max_new_tokens: Some(1),
                seed: Some(0),
                stop: vec!["x".repeat(256); 8],
                ..Default::default()
            };
            let sampling = Options::from_request(Some(options)).unwrap().sampling;
            assert_eq!(
                (sampling.top_p, sampling.top_k, sampling.seed),
                (top_p, 0, 0)
            );
            sampling.validate().unwrap();
        }
    }
}
