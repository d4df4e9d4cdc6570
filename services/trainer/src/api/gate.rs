//! A gate's message, and that of its decision, which is also its JSON in the store.

use togi_proto::events::v1 as events;
use togi_proto::trainer::v1 as proto;
use togi_runtime::layout;

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
            dataset: measured.dataset.into(),
            rows: measured.rows,
            loss: Some(measured.loss).filter(|loss| loss.is_finite()),
            serving_loss: measured.serving_loss.filter(|loss| loss.is_finite()),
            base_loss: measured.base_loss.filter(|loss| loss.is_finite()),
        });
        Self {
            generation: evaluation.generation.into(),
            alias: evaluation
                .alias
                .clone()
                .map_or_else(String::new, String::from),
            job: evaluation.job.to_string(),
            passed: evaluation.passed,
            reason: evaluation.reason.clone(),
            serving: evaluation.serving.map_or_else(String::new, String::from),
            held_out: held_out.collect(),
            answers: evaluation.answers.map(|answers| events::Answers {
                asked: answers.asked,
                right: answers.right,
                serving_right: answers.serving_right,
            }),
        }
    }
}

impl TryFrom<events::HeldOut> for HeldOut {
    type Error = Error;

    /// # Errors
    /// `InvalidArgument` for a data set that is no digest.
    fn try_from(measured: events::HeldOut) -> Result<Self> {
        Ok(Self {
            dataset: layout::parse("dataset", &measured.dataset)?,
            rows: measured.rows,
            loss: measured.loss.unwrap_or(f64::NAN),
            serving_loss: measured.serving_loss,
            base_loss: measured.base_loss,
        })
    }
}

impl TryFrom<events::AdapterEvaluated> for Evaluation {
    type Error = Error;

    /// # Errors
    /// `InvalidArgument` with the first id that is malformed.
    fn try_from(evaluated: events::AdapterEvaluated) -> Result<Self> {
        let set = |text: &str| !text.is_empty();
        let alias = Some(&evaluated.alias).filter(|alias| set(alias));
        let serving = Some(&evaluated.serving).filter(|serving| set(serving));
        let held_out = evaluated.held_out.into_iter().map(HeldOut::try_from);
        Ok(Self {
            generation: layout::parse("generation", &evaluated.generation)?,
            alias: alias
                .map(|alias| layout::parse("alias", alias))
                .transpose()?,
            job: layout::parse("job", &evaluated.job)?,
            passed: evaluated.passed,
            reason: evaluated.reason,
            serving: serving
                .map(|serving| layout::parse("serving", serving))
                .transpose()?,
            held_out: held_out.collect::<Result<_>>()?,
            answers: evaluated.answers.map(|answers| Answers {
                asked: answers.asked,
                right: answers.right,
                serving_right: answers.serving_right,
            }),
        })
    }
}
