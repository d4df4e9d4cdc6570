//! The gRPC service: a request is parsed and pinned to a generation, and its answer streams out.
//! Nothing here computes.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use togi_common::AliasName;
use togi_proto::inference::v1 as proto;
use togi_proto::inference::v1::inference_service_server::{
    InferenceService, InferenceServiceServer,
};
use togi_runtime::rpc::server::Services;
use tonic::{Request, Response, Status};

use crate::adapters::served::{Refusal, Serving};
use crate::engine::request::Caller;
use crate::error::{Error, Result};
use crate::replica::Replica;
use crate::rpc::answers::{self, Answers};
use crate::rpc::caller;
use crate::rpc::parse::{self, Limits};

/// The service over a replica.
#[derive(Clone)]
pub struct Service {
    replica: Arc<Replica>,
}

impl Service {
    /// Serves a replica, which may still be loading.
    pub fn new(replica: Arc<Replica>) -> Self {
        Self { replica }
    }
}

/// Adds the service of a replica to those of a process.
pub(crate) fn add(services: &mut Services, replica: Arc<Replica>) {
    services.add(InferenceServiceServer::new(Service::new(replica)));
}

#[tonic::async_trait]
impl InferenceService for Service {
    type GenerateStream = Answers;

    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> std::result::Result<Response<Answers>, Status> {
        let arrived = Instant::now();
        let caller = caller::caller(&request)?;
        let answers = self.answer(request.into_inner(), caller, arrived);
        Ok(Response::new(answers.await?))
    }

    async fn list_adapters(
        &self,
        _request: Request<proto::ListAdaptersRequest>,
    ) -> std::result::Result<Response<proto::ListAdaptersResponse>, Status> {
        let ready = self.replica.ready()?;
        let served = ready.adapters.shelf.served();
        Ok(Response::new(proto::ListAdaptersResponse {
            adapters: served.aliases.iter().map(served_to_proto).collect(),
            base_digest: ready.base_digest.clone(),
            replica: self.replica.name().to_owned(),
            rejected: served.refused.iter().map(refused_to_proto).collect(),
        }))
    }
}

impl Service {
    async fn answer(
        &self,
        request: proto::GenerateRequest,
        caller: Caller,
        arrived: Instant,
    ) -> Result<Answers> {
        let ready = self.replica.ready()?;
        let config = ready.admission.engine.config();
        let limits = Limits {
            max_prompt_bytes: self.replica.max_prompt_bytes(),
            vocab_size: config.vocab_size,
            longest: config.max_position_embeddings,
        };
        let request = parse::request(request, limits)?;
        let admitted = ready.admission.admit(request, caller, arrived)?;
        let resolving = ready.adapters.resolve(&admitted.request.answerer);
        let resolving = self.replica.unless_stopped(resolving);
        let adapter = match admitted.deadline() {
            None => resolving.await?,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), resolving)
                .await
                .map_err(|_| Error::NotBegun(arrived.elapsed()))??,
        };
        let events = ready.admission.answer(admitted, adapter).await?;
        Ok(answers::stream(events))
    }
}

fn served_to_proto((alias, serving): (&AliasName, &Serving)) -> proto::ServedAdapter {
    proto::ServedAdapter {
        alias: alias.to_string(),
        generation: serving.adapter.generation().into(),
        load_time: Some(timestamp(serving.since)),
    }
}

fn refused_to_proto((alias, refusal): (&AliasName, &Refusal)) -> proto::RejectedAdapter {
    proto::RejectedAdapter {
        alias: alias.to_string(),
        generation: refusal.generation.into(),
        reason: refusal.reason.clone(),
    }
}

fn timestamp(time: SystemTime) -> pbjson_types::Timestamp {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    pbjson_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}
