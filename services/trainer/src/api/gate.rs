//! A gate's message, and that of its decision, which is also its JSON in the store.

use togi_proto::events::v1 as events;
use togi_proto::trainer::v1 as proto;

use crate::api::stored::stored_as;
use crate::error::{Error, Result};
use crate::gate::{Answers, Evaluation, Gate, HeldOut};

stored_as!(Evaluation, events::AdapterEvaluated);

impl TryFrom<proto::Gate> for Gate {
    type Error = Error;

    /// # Errors
    /// [`Error::Invalid`] with the first field that is out of range.
    fn try_from(gate: proto::Gate) -> Result<Self> {
        let default = Self::default();
        Self {
            loss_tolerance: gate.loss_tolerance.unwrap_or(default.loss_tolerance),
            questions: Some(gate.questions).filter(|upload| !upload.is_empty()),
            answer_tolerance: gate.answer_tolerance.unwrap_or(default.answer_tolerance),
            least_right: gate.least_right.unwrap_or(default.least_right),
            max_new_tokens: gate.max_new_tokens.unwrap_or(default.max_new_tokens),
        }
        .checked()
    }
}

impl From<&Gate> for proto::Gate {
    fn from(gate: &Gate) -> Self {
        Self {
            loss_tolerance: Some(gate.loss_tolerance),
            questions: gate.questions.clone().unwrap_or_default(),
            answer_tolerance: Some(gate.answer_tolerance),
            least_right: Some(gate.least_right),
            max_new_tokens: Some(gate.max_new_tokens),
        }
    }
}

impl From<&Evaluation> for events::AdapterEvaluated {
    /// Leaves out losses that are not finite, because JSON has no form for them.
    fn from(evaluation: &Evaluation) -> Self {
        let held_out = evaluation.held_out.iter().map(|measured| events::HeldOut {
            dataset: measured.dataset.clone(),
            rows: measured.rows,
            loss: Some(measured.loss).filter(|loss| loss.is_finite()),
            serving_loss: measured.serving_loss.filter(|loss| loss.is_finite()),
        });
        Self {
            generation: evaluation.generation.clone(),
            alias: evaluation.alias.clone(),
            job: evaluation.job.clone(),
            passed: evaluation.passed,
            reason: evaluation.reason.clone(),
            serving: evaluation.serving.clone().unwrap_or_default(),
            held_out: held_out.collect(),
            answers: evaluation.answers.map(|answers| events::Answers {
                asked: answers.asked,
                right: answers.right,
                serving_right: answers.serving_right,
            }),
        }
    }
}

impl From<events::AdapterEvaluated> for Evaluation {
    fn from(evaluated: events::AdapterEvaluated) -> Self {
        let held_out = evaluated.held_out.into_iter().map(|measured| HeldOut {
            dataset: measured.dataset,
            rows: measured.rows,
            loss: measured.loss.unwrap_or(f64::NAN),
            serving_loss: measured.serving_loss,
        });
        Self {
            generation: evaluated.generation,
            alias: evaluated.alias,
            job: evaluated.job,
            passed: evaluated.passed,
            reason: evaluated.reason,
            serving: Some(evaluated.serving).filter(|serving| !serving.is_empty()),
            held_out: held_out.collect(),
            answers: evaluated.answers.map(|answers| Answers {
                asked: answers.asked,
                right: answers.right,
                serving_right: answers.serving_right,
            }),
        }
    }
}
