//! The gate before a promotion: a new adapter must not be worse than what is served. What was
//! measured goes in, the verdict and its reason come out; nothing here reads, measures or promotes.

pub(crate) mod measure;
pub mod questions;

use togi_common::{AliasName, DatasetId, Generation, JobId};
use togi_runtime::layout;

use crate::error::{Error, Result};

/// A complete gate, every number in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// By how much a held-out loss may be above the serving generation's, or the base's.
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

/// The mean losses on a data set's validation rows.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    /// The data set.
    pub dataset: DatasetId,
    /// Its validation rows.
    pub rows: u64,
    /// The new adapter's loss; NaN if it was not finite.
    pub loss: f64,
    /// The serving generation's loss.
    pub serving_loss: Option<f64>,
    /// The loss of the base without an adapter, on the new adapter's own data set.
    pub base_loss: Option<f64>,
}

/// The answers to a gate's questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Questions.
    pub asked: u64,
    /// The new adapter's right answers.
    pub right: u64,
    /// The serving generation's right answers.
    pub serving_right: Option<u64>,
}

/// A decision and the measurements behind it: a job's `evaluation.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The new adapter.
    pub generation: Generation,
    /// The alias that it shall be promoted to, if any.
    pub alias: Option<AliasName>,
    /// The job that made it.
    pub job: JobId,
    /// Whether it may be promoted.
    pub passed: bool,
    /// Why, in a sentence.
    pub reason: String,
    /// The generation that it was measured beside.
    pub serving: Option<Generation>,
    /// The losses of each data set.
    pub held_out: Vec<HeldOut>,
    /// The answers, if the gate has questions.
    pub answers: Option<Answers>,
}

impl Default for Gate {
    /// The contract's defaults.
    fn default() -> Self {
        Self {
            loss_tolerance: 0.05,
            questions: None,
            answer_tolerance: 0.05,
            least_right: 0.0,
            max_new_tokens: 64,
        }
    }
}

impl Gate {
    /// Checks every number's range.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first field that is out of range.
    pub(crate) fn checked(self) -> Result<Self> {
        if let Some(upload) = &self.questions {
            layout::validate_digest("gate.questions", upload)?;
        }
        if self.max_new_tokens == 0 {
            return Err(Error::invalid("gate.max_new_tokens", "is 0"));
        }
        within("gate.loss_tolerance", self.loss_tolerance, f64::MAX)?;
        within("gate.answer_tolerance", self.answer_tolerance, 1.0)?;
        within("gate.least_right", self.least_right, 1.0)?;
        Ok(self)
    }

    /// Decides over what was measured. Every bar that does not hold is named.
    #[must_use]
    pub fn judge(&self, held_out: &[HeldOut], answers: Option<&Answers>) -> Verdict {
        let losses = held_out.iter().flat_map(|measured| {
            let bars = [Some(self.loss(measured)), self.over_base(measured)];
            bars.into_iter().flatten()
        });
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
        let dataset = dataset.to_string();
        let says = format!("the held-out loss on data set {dataset:.13} is {loss:.4}");
        let Some(serving) = serving_loss else {
            return Bar {
                holds: loss.is_finite(),
                says: says + ", and no generation is served yet",
            };
        };
        let says = format!("{says}, the serving generation's {serving:.4}");
        let tolerance = self.loss_tolerance;
        // A serving loss that is NaN sets no bar.
        let holds = loss.is_finite() && (serving.is_nan() || *loss <= serving + tolerance);
        Bar {
            says: explain(says, holds, &format!("above by more than {tolerance}")),
            holds,
        }
    }

    /// An adapter that is worse than none on rows like its own has learnt something else. Nothing
    /// is said where it holds.
    fn over_base(&self, measured: &HeldOut) -> Option<Bar> {
        let (loss, tolerance) = (measured.loss, self.loss_tolerance);
        // A loss that is not finite is named by the other bar.
        let base = measured.base_loss.filter(|base| loss > base + tolerance)?;
        let of_base = format!("the base's without an adapter {base:.4}");
        let says = format!("the held-out loss is {loss:.4}, {of_base}");
        Some(Bar {
            says: explain(says, false, &format!("above by more than {tolerance}")),
            holds: false,
        })
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

fn within(field: &'static str, value: f64, most: f64) -> Result<()> {
    if (0.0..=most).contains(&value) {
        return Ok(());
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

    fn loss(loss: f64, serving: Option<f64>) -> HeldOut {
        HeldOut {
            dataset: "d".repeat(64).parse().unwrap(),
            rows: 3,
            loss,
            serving_loss: serving,
            base_loss: None,
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
            let verdict = Gate::default().judge(std::slice::from_ref(&measured), None);
            assert_eq!(verdict.passed, passes, "{measured:?}: {}", verdict.reason);
            assert!(verdict.reason.contains("ddddddddddddd is"), "{verdict:?}");
        }
        let both = [loss(1.0, Some(1.0)), loss(2.0, Some(1.0))];
        let verdict = Gate::default().judge(&both, None);
        assert!(!verdict.passed);
        assert!(verdict.reason.contains("2.0000") && !verdict.reason.contains(';'));
    }

    #[test]
    fn an_adapter_that_is_worse_than_the_base_is_refused() {
        let table = [
            (1.0, None, Some(1.0), true),
            (1.0, None, Some(0.951), true),
            (1.0, None, Some(0.949), false),
            (1.0, Some(2.0), Some(0.5), false),
            (1.0, Some(2.0), None, true),
            (1.0, None, Some(f64::NAN), true),
        ];
        for (ours, serving, base_loss, passes) in table {
            let measured = HeldOut {
                base_loss,
                ..loss(ours, serving)
            };
            let verdict = Gate::default().judge(&[measured], None);
            assert_eq!(verdict.passed, passes, "{base_loss:?}: {}", verdict.reason);
            assert_eq!(verdict.reason.contains("without an adapter"), !passes);
        }
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
                ..Gate::default()
            };
            let verdict = gate.judge(&[loss(1.0, None)], Some(&asked));
            assert_eq!(verdict.passed, passes, "{asked:?}: {}", verdict.reason);
        }
    }

    #[test]
    fn wrong_gates_are_refused_by_name() {
        type Set = fn(&mut Gate);
        let table: [(&str, Set); 6] = [
            ("gate.loss_tolerance", |gate| {
                gate.loss_tolerance = -0.1;
            }),
            ("gate.loss_tolerance", |gate| {
                gate.loss_tolerance = f64::INFINITY;
            }),
            ("gate.answer_tolerance", |gate| {
                gate.answer_tolerance = f64::NAN;
            }),
            ("gate.least_right", |gate| gate.least_right = 1.1),
            ("gate.max_new_tokens", |gate| gate.max_new_tokens = 0),
            ("gate.questions", |gate| {
                gate.questions = Some("questions.jsonl".into());
            }),
        ];
        for (field, set) in table {
            let mut wrong = Gate::default();
            set(&mut wrong);
            let error = wrong.checked().unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }
}
