//! The options of a request, checked field by field. Code behind this type does not check again.

use togi_model::sampling;

use crate::error::{Error, Result};

/// Most stop texts of a request.
pub(crate) const MAX_STOPS: usize = 8;
/// Longest stop text, in bytes.
pub(crate) const MAX_STOP_BYTES: usize = 256;

/// Valid options.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// How tokens are drawn, and the most of them.
    pub(crate) sampling: sampling::Options,
    /// Texts that end the answer.
    pub(crate) stop: Vec<String>,
}

impl Options {
    /// Checks options.
    ///
    /// # Errors
    /// [`Error::Field`] naming the first wrong field by its path in the request.
    pub(crate) fn new(sampling: sampling::Options, stop: Vec<String>) -> Result<Self> {
        sampling.validate().map_err(|error| match error {
            togi_model::Error::Field { field, reason } => {
                Error::field(format!("options.{field}"), reason)
            }
            other => Error::Network(other),
        })?;
        check_stops(&stop)?;
        Ok(Self { sampling, stop })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_option_is_refused_by_its_name() {
        type Set = fn(&mut Options);
        let table: &[(&str, Set)] = &[
            ("options.temperature", |o| o.sampling.temperature = f32::NAN),
            ("options.temperature", |o| {
                o.sampling.temperature = f32::INFINITY;
            }),
            ("options.temperature", |o| o.sampling.temperature = 0.0),
            ("options.temperature", |o| o.sampling.temperature = -1.0),
            ("options.temperature", |o| o.sampling.temperature = 1e-40),
            ("options.top_p", |o| o.sampling.top_p = f32::NAN),
            ("options.top_p", |o| o.sampling.top_p = -0.1),
            ("options.top_p", |o| o.sampling.top_p = 1.0001),
            ("options.repetition_penalty", |o| {
                o.sampling.repetition_penalty = f32::NAN;
            }),
            ("options.repetition_penalty", |o| {
                o.sampling.repetition_penalty = 0.0;
            }),
            ("options.max_new_tokens", |o| o.sampling.max_new_tokens = 0),
            ("options.stop", |o| o.stop = vec![String::new()]),
            ("options.stop", |o| o.stop = vec!["x".repeat(257)]),
            ("options.stop", |o| o.stop = vec!["x".into(); 9]),
            // Also checked where greedy decoding does not use them.
            ("options.top_p", |o| {
                o.sampling.top_p = 2.0;
                o.sampling.greedy = true;
            }),
        ];
        for (expected, set) in table {
            let mut options = Options::new(sampling::Options::default(), Vec::new()).unwrap();
            set(&mut options);
            let shown = format!("{options:?}");
            match Options::new(options.sampling, options.stop) {
                Err(Error::Field { field, .. }) => assert_eq!(field, *expected, "{shown}"),
                other => panic!("{shown} gave {other:?}"),
            }
        }
    }

    #[test]
    fn limits_themselves_are_allowed() {
        for top_p in [0.0, 1.0] {
            let sampling = sampling::Options {
                top_p,
                top_k: 0,
                no_repeat_ngram_size: 0,
                max_new_tokens: 1,
                ..Default::default()
            };
            let options = Options::new(sampling, vec!["x".repeat(256); 8]).unwrap();
            options.sampling.validate().unwrap();
        }
    }
}
