//! The message of a job's request, which is also its JSON in the store and on the bus.

use togi_proto::trainer::v1 as proto;
use togi_runtime::layout;

use crate::api::stored::stored_as;
use crate::error::{Error, Result};
use crate::fit::MemoryPlan;
use crate::gate::Gate;
use crate::recipe::Recipe;
use crate::request::{Asked, CreateJob, check_key};

stored_as!(CreateJob, proto::CreateJobRequest);

impl Asked {
    /// Reads a request that came over the bus.
    ///
    /// # Errors
    /// `InvalidArgument` if it cannot be parsed; [`Error::Invalid`] with the field at fault.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self> {
        let asked: proto::CreateJobRequest =
            serde_json::from_slice(bytes).map_err(togi_runtime::Error::from)?;
        asked.try_into()
    }
}

impl TryFrom<proto::CreateJobRequest> for Asked {
    type Error = Error;

    /// # Errors
    /// [`Error::Invalid`] with the first field that is out of range, or that only the policy may
    /// set.
    fn try_from(asked: proto::CreateJobRequest) -> Result<Self> {
        if asked.policy.is_empty() {
            return Ok(Self::Parts(Box::new(asked.try_into()?)));
        }
        check_key(&asked.idempotency_key)?;
        layout::validate_name("policy", &asked.policy)?;
        let set = [
            ("base", !asked.base.is_empty()),
            ("dataset", !asked.dataset.is_empty()),
            ("recipe", asked.recipe.is_some()),
            ("alias", !asked.alias.is_empty()),
            ("gate", asked.gate.is_some()),
        ];
        if let Some((field, _)) = set.into_iter().find(|(_, is_set)| *is_set) {
            return Err(Error::invalid(field, "is the policy's to say"));
        }
        Ok(Self::Policy {
            policy: asked.policy,
            idempotency_key: asked.idempotency_key,
        })
    }
}

impl TryFrom<proto::CreateJobRequest> for CreateJob {
    type Error = Error;

    /// # Errors
    /// [`Error::Invalid`] with the gate's or the recipe's first field that is out of range.
    fn try_from(request: proto::CreateJobRequest) -> Result<Self> {
        Ok(Self {
            gate: request.gate.map(Gate::try_from).transpose()?,
            recipe: Recipe::try_from(request.recipe.unwrap_or_default())?,
            base: request.base,
            dataset: request.dataset,
            alias: request.alias,
            idempotency_key: request.idempotency_key,
            policy: Some(request.policy).filter(|policy| !policy.is_empty()),
        })
    }
}

impl From<&CreateJob> for proto::CreateJobRequest {
    fn from(request: &CreateJob) -> Self {
        Self {
            base: request.base.clone(),
            dataset: request.dataset.clone(),
            recipe: Some((&request.recipe).into()),
            alias: request.alias.clone(),
            idempotency_key: request.idempotency_key.clone(),
            validate_only: false,
            gate: request.gate.as_ref().map(Into::into),
            policy: request.policy.clone().unwrap_or_default(),
        }
    }
}

impl From<&MemoryPlan> for proto::MemoryPlan {
    /// The contract counts the gradients with the optimizer.
    fn from(plan: &MemoryPlan) -> Self {
        let parts = &plan.parts;
        Self {
            weights_bytes: parts.weights,
            lora_bytes: parts.values,
            optimizer_bytes: parts.gradients + parts.moments,
            activations_bytes: parts.activations,
            total_bytes: parts.total(),
            available_bytes: plan.available.unwrap_or(0),
            tokens: plan.tokens as u64,
            device: plan.device.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_names_a_policy_names_nothing_else() {
        let alone = br#"{"policy":"nightly","idempotencyKey":"k"}"#;
        let expected = Asked::Policy {
            policy: "nightly".into(),
            idempotency_key: "k".into(),
        };
        assert_eq!(Asked::from_json(alone).unwrap(), expected);
        for (field, part) in [
            ("base", r#""base":"b""#),
            ("dataset", r#""dataset":"d""#),
            ("recipe", r#""recipe":{}"#),
            ("alias", r#""alias":"a""#),
            ("gate", r#""gate":{}"#),
        ] {
            let request = format!(r#"{{"policy":"nightly",{part}}}"#);
            let error = Asked::from_json(request.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Invalid { field: found, .. } if found == field));
        }
    }

    #[test]
    fn a_part_that_is_not_set_has_its_default() {
        let asked = Asked::from_json(br#"{"base":"b","gate":{"leastRight":0.5}}"#).unwrap();
        let Asked::Parts(request) = asked else {
            panic!("it names no policy");
        };
        assert_eq!(request.recipe, Recipe::default());
        let expected = Gate {
            least_right: 0.5,
            ..Gate::default()
        };
        assert_eq!((request.gate, request.policy), (Some(expected), None));
    }
}
