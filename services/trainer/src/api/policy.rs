//! PolicyService over the policies in the store. A policy's message is also its JSON there.

use togi_proto::trainer::v1 as proto;
use togi_proto::trainer::v1::policy_service_server::{PolicyService, PolicyServiceServer};
use togi_proto::trainer::v1::{
    ApplyPolicyRequest, ApplyPolicyResponse, DeletePolicyRequest, DeletePolicyResponse,
    GetPolicyRequest, GetPolicyResponse, ListPoliciesRequest, ListPoliciesResponse,
};
use togi_runtime::life::deadline::bounded;
use tonic::{Request, Response, Status, async_trait};

use crate::api::stored::stored_as;
use crate::error::Error;
use crate::gate::Gate;
use crate::policies::policy::{Body, Policies};
use crate::policies::trigger::Trigger;
use crate::recipe::Recipe;

/// The outcome of a question that is not answered in time.
const NOT_KNOWN: &str = "ask again";
/// The outcome of a change that is not confirmed in time.
const UNCLEAR: &str = "whether the policy has changed is not known; the same call again is safe";

/// Answers PolicyService.
pub(crate) struct PolicyApi {
    policies: Policies,
}

impl PolicyApi {
    /// Returns the gRPC service.
    pub(crate) fn service(policies: Policies) -> PolicyServiceServer<Self> {
        PolicyServiceServer::new(Self { policies })
    }
}

stored_as!(Body, proto::Policy);

impl TryFrom<proto::Policy> for Body {
    type Error = Error;

    /// A policy of before there were gates and triggers has the defaults.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the recipe's or the gate's first field that is out of range.
    fn try_from(policy: proto::Policy) -> Result<Self, Error> {
        let proto::Trigger {
            new_revision,
            schedule,
        } = policy.trigger.unwrap_or_default();
        Ok(Self {
            recipe: Recipe::try_from(policy.recipe.unwrap_or_default())?,
            gate: Gate::try_from(policy.gate.unwrap_or_default())?,
            name: policy.name,
            dataset: policy.dataset,
            base: policy.base,
            alias: policy.alias,
            trigger: Trigger {
                new_revision: new_revision.unwrap_or(schedule.is_empty()),
                schedule: Some(schedule).filter(|schedule| !schedule.is_empty()),
            },
        })
    }
}

impl From<&Body> for proto::Policy {
    fn from(body: &Body) -> Self {
        Self {
            name: body.name.clone(),
            dataset: body.dataset.clone(),
            base: body.base.clone(),
            recipe: Some((&body.recipe).into()),
            alias: body.alias.clone(),
            trigger: Some(proto::Trigger {
                new_revision: Some(body.trigger.new_revision),
                schedule: body.trigger.schedule.clone().unwrap_or_default(),
            }),
            gate: Some((&body.gate).into()),
        }
    }
}

#[async_trait]
impl PolicyService for PolicyApi {
    async fn apply_policy(
        &self,
        request: Request<ApplyPolicyRequest>,
    ) -> Result<Response<ApplyPolicyResponse>, Status> {
        let policy = request
            .into_inner()
            .policy
            .ok_or_else(|| Error::invalid("policy", "is missing"))?;
        let applied = bounded(UNCLEAR, self.policies.apply(policy.try_into()?)).await?;
        Ok(Response::new(ApplyPolicyResponse {
            policy: Some((&applied.body).into()),
            version: applied.version,
        }))
    }

    async fn get_policy(
        &self,
        request: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        let name = request.into_inner().name;
        let policy = bounded(NOT_KNOWN, self.policies.get(&name)).await?;
        Ok(Response::new(GetPolicyResponse {
            policy: Some((&policy.body).into()),
            version: policy.version,
        }))
    }

    async fn list_policies(
        &self,
        _request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        let policies = bounded(NOT_KNOWN, self.policies.list()).await?;
        Ok(Response::new(ListPoliciesResponse {
            policies: policies
                .iter()
                .map(|policy| (&policy.body).into())
                .collect(),
        }))
    }

    async fn delete_policy(
        &self,
        request: Request<DeletePolicyRequest>,
    ) -> Result<Response<DeletePolicyResponse>, Status> {
        let name = request.into_inner().name;
        bounded(UNCLEAR, self.policies.delete(&name)).await?;
        Ok(Response::new(DeletePolicyResponse {}))
    }
}
