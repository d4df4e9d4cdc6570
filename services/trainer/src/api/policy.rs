//! PolicyService over the policies in the store.

use togi_proto::trainer::v1::policy_service_server::PolicyService;
use togi_proto::trainer::v1::{
    ApplyPolicyRequest, ApplyPolicyResponse, DeletePolicyRequest, DeletePolicyResponse,
    GetPolicyRequest, GetPolicyResponse, ListPoliciesRequest, ListPoliciesResponse,
};
use tonic::{Request, Response, Status, async_trait};

use crate::error::Error;
use crate::policies::policy::Policies;

/// Answers PolicyService.
pub struct PolicyApi {
    /// The policies.
    pub policies: Policies,
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
        let applied = self.policies.apply(policy).await?;
        Ok(Response::new(ApplyPolicyResponse {
            policy: Some(applied.body),
            version: applied.version,
        }))
    }

    async fn get_policy(
        &self,
        request: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        let policy = self.policies.get(&request.into_inner().name).await?;
        Ok(Response::new(GetPolicyResponse {
            policy: Some(policy.body),
            version: policy.version,
        }))
    }

    async fn list_policies(
        &self,
        _request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        let policies = self.policies.list().await?;
        Ok(Response::new(ListPoliciesResponse {
            policies: policies.into_iter().map(|policy| policy.body).collect(),
        }))
    }

    async fn delete_policy(
        &self,
        request: Request<DeletePolicyRequest>,
    ) -> Result<Response<DeletePolicyResponse>, Status> {
        self.policies.delete(&request.into_inner().name).await?;
        Ok(Response::new(DeletePolicyResponse {}))
    }
}
