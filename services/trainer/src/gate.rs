//! The gate before a promotion: a new adapter must not be worse than what is served. What was
//! measured goes in, the verdict and its reason come out; nothing here reads, measures or promotes.

pub(crate) mod measure;
pub mod questions;

use togi_proto::events::v1::{Answers, HeldOut};
use togi_proto::trainer::v1 as proto;
use togi_runtime::layout;

use crate::error::{Error, Result};

/// A complete gate, every number in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// By how much a held-out loss may be above the serving generation's.
    pub loss_tolerance: f64,
    /// The upload with the questions.
    pub questions: Option<String>,
    /// By how much the share of right answers may be below the serving generation's.
    pub answer_tolerance: f64,
    /// Smallest share of right answers, whatever is served.
    pub least_right: f64,
    /// Most tokens of an answer.
    pub max_new_tokens: u32,
}

/// What the gate has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the adapter may be promoted.
    pub passed: bool,
    /// Why, in a sentence.
    pub reason: String,
}

impl Gate {
    /// Validates a gate and fills in the defaults.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first field that is out of range.
    pub fn from_proto(gate: &proto::Gate) -> Result<Self> {
        if !gate.questions.is_empty() {
            layout::validate_digest("gate.questions", &gate.questions)?;
        }
        let max_new_tokens = gate.max_new_tokens.unwrap_or(64);
        if max_new_tokens == 0 {
            return Err(Error::invalid("gate.max_new_tokens", "is 0"));
        }
        Ok(Gate {
            loss_tolerance: within(
                "gate.loss_tolerance",
                gate.loss_tolerance.unwrap_or(0.05),
                f64::MAX,
            )?,
            questions: Some(gate.questions.clone()).filter(|upload| !upload.is_empty()),
            answer_tolerance: within(
                "gate.answer_tolerance",
                gate.answer_tolerance.unwrap_or(0.05),
                1.0,
            )?,
            least_right: within("gate.least_right", gate.least_right.unwrap_or(0.0), 1.0)?,
            max_new_tokens,
        })
    }

    /// Returns the gate with every field set.
    #[must_use]
    pub fn to_proto(&self) -> proto::Gate {
        proto::Gate {
            loss_tolerance: Some(self.loss_tolerance),
            questions: self.questions.clone().unwrap_or_default(),
            answer_tolerance: Some(self.answer_tolerance),
            least_right: Some(self.least_right),
            max_new_tokens: Some(self.max_new_tokens),
        }
    }

    /// Decides over what was measured. Every bar that does not hold is named.
    #[must_use]
    pub fn judge(&self, held_out: &[HeldOut], answers: Option<&Answers>) -> Verdict {
        let losses = held_out.iter().map(|measured| self.loss(measured));
        let answers = answers.into_iter().flat_map(|asked| self.answers(asked));
        let (good, bad): (Vec<_>, Vec<_>) = losses.chain(answers).partition(|bar| bar.holds);
        let passed = bad.is_empty();
        let reasons: Vec<_> = if passed { good } else { bad }
            .into_iter()
            .map(|bar| bar.says)
            .collect();
        Verdict {
            passed,
            reason: reasons.join("; "),
        }
    }

    fn loss(&self, measured: &HeldOut) -> Bar {
        let HeldOut {
            dataset,
            loss,
            serving_loss,
            ..
        } = measured;
        let loss = loss.unwrap_or(f64::NAN);
        let short = dataset.get(..13).unwrap_or(dataset);
        let says = format!("the held-out loss on data set {short} is {loss:.4}");
        let Some(serving) = serving_loss else {
            return Bar {
                holds: loss.is_finite(),
                says: says + ", and no generation is served yet",
            };
        };
        let says = format!("{says}, the serving generation's {serving:.4}");
        let tolerance = self.loss_tolerance;
        // A serving loss that is NaN sets no bar.
        let holds = loss.is_finite() && (serving.is_nan() || loss <= serving + tolerance);
        Bar {
            says: explain(says, holds, &format!("above by more than {tolerance}")),
            holds,
        }
    }

    fn answers(&self, answers: &Answers) -> Vec<Bar> {
        let Answers {
            asked,
            right,
            serving_right,
        } = answers;
        let share = |right: u64| right as f64 / (*asked).max(1) as f64;
        let says = format!("{right} of {asked} questions are answered right");
        let holds = share(*right) >= self.least_right;
        let why_not = format!("less than the share of {}", self.least_right);
        let mut bars = vec![Bar {
            says: explain(says.clone(), holds, &why_not),
            holds,
        }];
        if let Some(serving) = serving_right {
            let says = format!("{says}, the serving generation answers {serving}");
            let tolerance = self.answer_tolerance;
            let holds = share(*right) >= share(*serving) - tolerance;
            bars.push(Bar {
                says: explain(says, holds, &format!("below by more than {tolerance}")),
                holds,
            });
        }
        bars
    }
}

/// A condition and its sentence in the reason.
struct Bar {
    holds: bool,
    says: String,
}

fn explain(says: String, holds: bool, why_not: &str) -> String {
    if holds {
        says
    } else {
        format!("{says}: {why_not}")
    }
}

fn within(field: &'static str, value: f64, most: f64) -> Result<f64> {
    if (0.0..=most).contains(&value) {
        return Ok(value);
    }
    let reason = match most {
        f64::MAX => format!("is {value}; it must be at least 0 and finite"),
        _ => format!("is {value}; it must be from 0 to {most}"),
    };
    Err(Error::invalid(field, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::from_proto(&proto::Gate::default()).unwrap()
    }

    fn loss(loss: f64, serving: Option<f64>) -> HeldOut {
        HeldOut {
            dataset: "d".repeat(64),
            rows: 3,
            loss: Some(loss),
            serving_loss: serving,
        }
    }

    fn answers(right: u64, serving: Option<u64>) -> Answers {
        Answers {
            asked: 20,
            right,
            serving_right: serving,
        }
    }

    #[test]
    fn a_loss_may_be_above_by_the_tolerance_and_no_more() {
        let table = [
            (loss(1.0, Some(1.0)), true),
            (loss(0.1, Some(1.0)), true),
            (loss(1.05, Some(1.0)), true),
            (loss(1.051, Some(1.0)), false),
            (loss(f64::NAN, Some(1.0)), false),
            (loss(f64::INFINITY, Some(1.0)), false),
            (loss(9.0, Some(f64::NAN)), true),
            (loss(f64::NAN, Some(f64::NAN)), false),
            (loss(9.0, None), true),
            (loss(f64::NAN, None), false),
        ];
        for (measured, passes) in table {
            let verdict = gate().judge(std::slice::from_ref(&measured), None);
            assert_eq!(verdict.passed, passes, "{measured:?}: {}", verdict.reason);
            assert!(verdict.reason.contains("ddddddddddddd is"), "{verdict:?}");
        }
        let both = [loss(1.0, Some(1.0)), loss(2.0, Some(1.0))];
        let verdict = gate().judge(&both, None);
        assert!(!verdict.passed);
        assert!(verdict.reason.contains("2.0000") && !verdict.reason.contains(';'));
    }

    #[test]
    fn answers_are_held_against_what_is_served_and_against_the_least() {
        let table = [
            (answers(20, Some(20)), 0.0, true),
            (answers(19, Some(20)), 0.0, true),
            (answers(18, Some(20)), 0.0, false),
            (answers(0, None), 0.0, true),
            (answers(15, None), 0.8, false),
            (answers(16, None), 0.8, true),
            (answers(15, Some(3)), 0.8, false),
        ];
        for (asked, least_right, passes) in table {
            let gate = Gate {
                least_right,
                ..gate()
            };
            let verdict = gate.judge(&[loss(1.0, None)], Some(&asked));
            assert_eq!(verdict.passed, passes, "{asked:?}: {}", verdict.reason);
        }
    }

    #[test]
    fn wrong_gates_are_refused_by_name() {
        type Set = fn(&mut proto::Gate);
        let table: [(&str, Set); 6] = [
            ("gate.loss_tolerance", |gate| {
                gate.loss_tolerance = Some(-0.1)
            }),
            ("gate.loss_tolerance", |gate| {
                gate.loss_tolerance = Some(f64::INFINITY);
            }),
            ("gate.answer_tolerance", |gate| {
                gate.answer_tolerance = Some(f64::NAN);
            }),
            ("gate.least_right", |gate| gate.least_right = Some(1.1)),
            ("gate.max_new_tokens", |gate| gate.max_new_tokens = Some(0)),
            ("gate.questions", |gate| {
                gate.questions = "questions.jsonl".into();
            }),
        ];
        for (field, set) in table {
            let mut wrong = proto::Gate::default();
            set(&mut wrong);
            let error = Gate::from_proto(&wrong).unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
        assert_eq!(Gate::from_proto(&gate().to_proto()).unwrap(), gate());
    }
}
