//! AdapterService over the registry in the store.

use togi_proto::trainer::v1::adapter_service_server::AdapterService;
use togi_proto::trainer::v1::{
    GetAdapterRequest, GetAdapterResponse, ListAdaptersRequest, ListAdaptersResponse,
    ListAliasesRequest, ListAliasesResponse, PromoteAdapterRequest, PromoteAdapterResponse,
    RollbackAliasRequest, RollbackAliasResponse,
};
use togi_runtime::registry::aliases::Aliases;
use togi_runtime::{Class, Store, layout};
use tonic::{Request, Response, Status, async_trait};
use tracing::warn;

use crate::error::Error;
use crate::page::page;
use crate::registry::{self, Published};

/// Answers AdapterService.
pub struct AdapterApi {
    /// The object store.
    pub store: Store,
    /// What is promoted.
    pub aliases: Aliases,
}

impl AdapterApi {
    async fn describe(
        &self,
        published: &[Published],
    ) -> Result<Vec<togi_proto::trainer::v1::Adapter>, Error> {
        let named = registry::named(&self.aliases).await?;
        let mut adapters = Vec::with_capacity(published.len());
        for published in published {
            match registry::describe(&self.store, published, &named).await {
                Ok(adapter) => adapters.push(adapter),
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
        let published = registry::list(&self.store).await?;
        let (published, next_page_token) = page(
            published,
            |one| one.generation.to_string(),
            page_size,
            &page_token,
        )?;
        let adapters = self.describe(&published).await?;
        Ok(Response::new(ListAdaptersResponse {
            adapters,
            next_page_token,
        }))
    }

    async fn get_adapter(
        &self,
        request: Request<GetAdapterRequest>,
    ) -> Result<Response<GetAdapterResponse>, Status> {
        let published =
            registry::find(&self.store, &self.aliases, &request.into_inner().adapter).await?;
        let named = registry::named(&self.aliases).await?;
        let adapter = registry::describe(&self.store, &published, &named).await?;
        Ok(Response::new(GetAdapterResponse {
            adapter: Some(adapter),
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
        let promoted = self
            .aliases
            .promote(&alias, generation, allow_base_mismatch.into())
            .await?;
        Ok(Response::new(PromoteAdapterResponse {
            alias: Some(registry::to_proto(promoted)),
        }))
    }

    async fn rollback_alias(
        &self,
        request: Request<RollbackAliasRequest>,
    ) -> Result<Response<RollbackAliasResponse>, Status> {
        let alias = layout::parse("alias", &request.into_inner().alias)?;
        let rolled_back = self.aliases.rollback(&alias).await?;
        Ok(Response::new(RollbackAliasResponse {
            alias: Some(registry::to_proto(rolled_back)),
        }))
    }

    async fn list_aliases(
        &self,
        _request: Request<ListAliasesRequest>,
    ) -> Result<Response<ListAliasesResponse>, Status> {
        let aliases = self
            .aliases
            .list()
            .await?
            .into_iter()
            .map(registry::to_proto)
            .collect();
        Ok(Response::new(ListAliasesResponse { aliases }))
    }
}
