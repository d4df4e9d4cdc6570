//! AdapterService over the registry in the store.

use std::collections::BTreeMap;

use jiff::Timestamp;
use togi_common::{AliasName, Generation};
use togi_proto::trainer::v1 as proto;
use togi_proto::trainer::v1::adapter_service_server::{AdapterService, AdapterServiceServer};
use togi_proto::trainer::v1::{
    GetAdapterRequest, GetAdapterResponse, ListAdaptersRequest, ListAdaptersResponse,
    ListAliasesRequest, ListAliasesResponse, PromoteAdapterRequest, PromoteAdapterResponse,
    RollbackAliasRequest, RollbackAliasResponse,
};
use togi_runtime::life::deadline::bounded;
use togi_runtime::registry::adapter_manifest::AdapterManifest;
use togi_runtime::registry::aliases::{Alias, Aliases};
use togi_runtime::{Class, Store, layout};
use tonic::{Request, Response, Status, async_trait};
use tracing::warn;

use crate::error::Error;
use crate::page::page;
use crate::registry::{self, Published};

/// The outcome of a question that is not answered in time.
const NOT_KNOWN: &str = "ask again";

/// Answers AdapterService.
pub(crate) struct AdapterApi {
    /// The object store.
    pub store: Store,
    /// What is promoted.
    pub aliases: Aliases,
}

impl AdapterApi {
    /// Returns the gRPC service.
    pub(crate) fn service(self) -> AdapterServiceServer<Self> {
        AdapterServiceServer::new(self)
    }

    async fn describe(&self, published: &[Published]) -> Result<Vec<proto::Adapter>, Error> {
        let named = registry::named(&self.aliases).await?;
        let mut adapters = Vec::with_capacity(published.len());
        for one in published {
            match registry::manifest(&self.store, one).await {
                Ok(manifest) => adapters.push(adapter(manifest, one, &named)),
                // One that cannot be read hides no other.
                Err(error) if error.class() == Class::DataLoss => {
                    warn!(%error, "an adapter is passed over")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(adapters)
    }
}

#[async_trait]
impl AdapterService for AdapterApi {
    async fn list_adapters(
        &self,
        request: Request<ListAdaptersRequest>,
    ) -> Result<Response<ListAdaptersResponse>, Status> {
        let ListAdaptersRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let all = bounded(NOT_KNOWN, registry::list(&self.store)).await?;
        let (shown, next_page_token) = page(
            all,
            |one| one.generation.to_string(),
            page_size,
            &page_token,
        )?;
        let adapters = bounded(NOT_KNOWN, self.describe(&shown)).await?;
        Ok(Response::new(ListAdaptersResponse {
            adapters,
            next_page_token,
        }))
    }

    async fn get_adapter(
        &self,
        request: Request<GetAdapterRequest>,
    ) -> Result<Response<GetAdapterResponse>, Status> {
        let name = request.into_inner().adapter;
        let finding = async {
            let published = registry::find(&self.store, &self.aliases, &name).await?;
            let named = registry::named(&self.aliases).await?;
            let manifest = registry::manifest(&self.store, &published).await?;
            Ok::<_, Error>((published, named, manifest))
        };
        let (published, named, manifest) = bounded(NOT_KNOWN, finding).await?;
        Ok(Response::new(GetAdapterResponse {
            adapter: Some(adapter(manifest, &published, &named)),
        }))
    }

    async fn promote_adapter(
        &self,
        request: Request<PromoteAdapterRequest>,
    ) -> Result<Response<PromoteAdapterResponse>, Status> {
        let PromoteAdapterRequest {
            alias,
            generation,
            allow_base_mismatch,
        } = request.into_inner();
        let alias = layout::parse("alias", &alias)?;
        let generation = layout::parse("generation", &generation)?;
        let base_mismatch = allow_base_mismatch.into();
        let promoting = self.aliases.promote(&alias, generation, base_mismatch);
        let outcome = "whether the alias has changed is not known; the same call again is safe";
        let promoted = bounded(outcome, promoting).await?;
        Ok(Response::new(PromoteAdapterResponse {
            alias: Some(to_message(promoted)),
        }))
    }

    async fn rollback_alias(
        &self,
        request: Request<RollbackAliasRequest>,
    ) -> Result<Response<RollbackAliasResponse>, Status> {
        let alias = layout::parse("alias", &request.into_inner().alias)?;
        let outcome = "whether the alias has changed is not known; list the aliases before the \
                       same call again, because each one goes back further";
        let rolled_back = bounded(outcome, self.aliases.rollback(&alias)).await?;
        Ok(Response::new(RollbackAliasResponse {
            alias: Some(to_message(rolled_back)),
        }))
    }

    async fn list_aliases(
        &self,
        _request: Request<ListAliasesRequest>,
    ) -> Result<Response<ListAliasesResponse>, Status> {
        let aliases = bounded(NOT_KNOWN, self.aliases.list())
            .await?
            .into_iter()
            .map(to_message)
            .collect();
        Ok(Response::new(ListAliasesResponse { aliases }))
    }
}

/// Returns an adapter's message; `named` has the aliases of each generation.
fn adapter(
    manifest: AdapterManifest,
    published: &Published,
    named: &BTreeMap<Generation, Vec<AliasName>>,
) -> proto::Adapter {
    let tensors = manifest.files.get(togi_model::adapter::TENSORS_FILE);
    let aliases = named.get(&published.generation).into_iter().flatten();
    proto::Adapter {
        size_bytes: tensors.map_or(0, |file| file.bytes),
        aliases: aliases.map(AliasName::to_string).collect(),
        create_time: Some(time(published.time)),
        base_digest: manifest.identity.base,
        tokenizer_digest: manifest.identity.tokenizer,
        dataset: manifest.identity.dataset.into(),
        recipe_digest: manifest.identity.recipe,
        base_precision: manifest.identity.base_precision,
        rank: manifest.rank,
        alpha: manifest.alpha,
        target_modules: manifest.target_modules,
        job: manifest.job,
        recipe_name: manifest.recipe_name,
        generation: manifest.generation.to_string(),
    }
}

fn to_message(alias: Alias) -> proto::Alias {
    let Alias { revision, content } = alias;
    proto::Alias {
        name: content.alias.into(),
        generation: content.generation.into(),
        revision,
        allow_base_mismatch: content.base_mismatch.into(),
        update_time: content.time.parse().ok().map(time),
    }
}

fn time(time: Timestamp) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}
