//! Arrow Flight: every committed data set in any order from any row. The service keeps no state of
//! readers: after a lost connection a reader sends the offset that it had reached.

use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, IpcMessage, PollInfo, PutResult, SchemaAsIpc,
    SchemaResult, Ticket,
};
use arrow_ipc::writer::IpcWriteOptions;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use togi_runtime::{Class, Error, Result, Store};
use togi_tokens::manifest::Split;
use togi_tokens::shard;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, info_span};

use super::ticket::{Wanted, split_name};
use crate::catalog::{Catalog, Named};
use crate::config::FlightConfig;
use crate::metrics::Metrics;
use crate::rows::{Rows, Shards};

/// Data sets that a listing reads from the store at a time.
const LIST_PAGE: usize = 64;
/// Most bytes of a request.
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The Flight service.
#[derive(Clone)]
pub struct Flight {
    catalog: Catalog,
    shards: Arc<Shards>,
    readers: Arc<Semaphore>,
    config: FlightConfig,
}

impl Flight {
    /// Serves the committed data sets of a store.
    pub fn new(store: &Store, config: FlightConfig, metrics: &Metrics) -> Self {
        let shards = Shards::new(store, config.cache_bytes, metrics);
        Self {
            catalog: Catalog::new(store.clone()),
            shards: Arc::new(shards),
            readers: Arc::new(Semaphore::new(config.max_readers)),
            config,
        }
    }

    /// Returns the gRPC server of this service.
    pub(crate) fn into_server(self) -> FlightServiceServer<Self> {
        FlightServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    async fn info(&self, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        let (asked, wanted) = Wanted::from_descriptor(&descriptor)?;
        let named = self.catalog.get(&asked).await?;
        flight_info(descriptor, &named, &wanted)
    }

    async fn rows(&self, ticket: &Ticket) -> Result<BoxStream<'static, Answer<FlightData>>> {
        let (dataset, wanted) = Wanted::from_ticket(ticket)?;
        let manifest = self.catalog.manifest(dataset).await?;
        check_offset(&wanted, manifest.rows(wanted.selection.split))?;
        let permit = self.readers.clone().try_acquire_owned().map_err(|_| {
            let text = "too many readers at the same time; try again later";
            Error::new(Class::ResourceExhausted, text)
        })?;
        let span = info_span!(
            "read_rows",
            %dataset,
            offset = wanted.selection.offset
        );
        let rows = Rows::new(
            self.shards.clone(),
            Arc::new(manifest),
            &wanted.selection,
            &self.config,
        );
        let schema = wanted.schema()?;
        let windows = stream::try_unfold((rows, permit), move |(mut rows, permit)| {
            let next = async move {
                let window = rows.next_window().await?;
                Ok::<_, Status>((!window.is_empty()).then_some((window, (rows, permit))))
            };
            next.instrument(span.clone())
        });
        let batches = windows
            .map_ok(|window| stream::iter(window.into_iter().map(Ok::<_, Status>)))
            .try_flatten()
            .map_err(FlightError::from);
        let batches = batches.and_then(move |batch| {
            let chosen = match wanted.columns.as_slice() {
                [] => Ok(batch),
                columns => batch.project(columns).map_err(FlightError::from),
            };
            std::future::ready(chosen)
        });
        let encoder = FlightDataEncoderBuilder::new().with_schema(schema);
        Ok(encoder.build(batches).map_err(Status::from).boxed())
    }

    /// Lists the newest revision of every name with a prefix, with one entry for each split that
    /// has rows.
    fn all(self, prefix: String) -> impl Stream<Item = Answer<FlightInfo>> {
        stream::try_unfold(Some(String::new()), move |after| {
            let (flight, prefix) = (self.clone(), prefix.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let (page, more) = flight.catalog.page(&after, LIST_PAGE).await?;
                let next = page.last().filter(|_| more).map(|last| last.name.clone());
                let mut infos = Vec::new();
                for named in page.iter().filter(|named| named.name.starts_with(&prefix)) {
                    for split in [Split::Train, Split::Validation] {
                        if named.manifest.rows(split) > 0 {
                            infos.push(listed(named, split)?);
                        }
                    }
                }
                Ok::<_, Error>(Some((
                    stream::iter(infos.into_iter().map(Ok::<_, Error>)),
                    next,
                )))
            }
        })
        .try_flatten()
        .map_err(Status::from)
    }
}

fn listed(named: &Named, split: Split) -> Result<FlightInfo> {
    let mut path = vec![named.name.clone()];
    if split != Split::Train {
        path.push(split_name(split).to_owned());
    }
    let wanted = Wanted::all(split);
    flight_info(FlightDescriptor::new_path(path), named, &wanted)
}

fn flight_info(descriptor: FlightDescriptor, named: &Named, wanted: &Wanted) -> Result<FlightInfo> {
    let manifest = &named.manifest;
    let split = wanted.selection.split;
    let rows = manifest.rows(split);
    check_offset(wanted, rows)?;
    let bytes: u64 = manifest.of_split(split).map(|part| part.size_bytes).sum();
    let ticket = wanted.to_ticket(manifest.dataset)?;
    let info = FlightInfo::new()
        .try_with_schema(wanted.schema()?.as_ref())
        .map_err(|e| Error::internal("the schema could not be written").with_source(e))?
        .with_descriptor(descriptor)
        // Without a location the rows are at this service.
        .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
        .with_total_records(i64::try_from(rows - wanted.selection.offset).unwrap_or(i64::MAX))
        .with_total_bytes(i64::try_from(bytes).unwrap_or(i64::MAX))
        .with_ordered(true);
    Ok(info)
}

fn check_offset(wanted: &Wanted, rows: u64) -> Result<()> {
    let offset = wanted.selection.offset;
    if offset > rows {
        let text = format!("offset {offset} is behind the end: the split has {rows} rows");
        return Err(Error::invalid("ticket.offset", text));
    }
    Ok(())
}

type Answer<T> = std::result::Result<T, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Answer<T>> + Send>>;

fn not_offered(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not offered: data sets are read only"))
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn list_flights(
        &self,
        request: Request<Criteria>,
    ) -> Answer<Response<Self::ListFlightsStream>> {
        let prefix = String::from_utf8(request.into_inner().expression.into()).map_err(|_| {
            Error::invalid(
                "criteria.expression",
                "criteria.expression must be a name's beginning",
            )
        })?;
        Ok(Response::new(Box::pin(self.clone().all(prefix))))
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Answer<Response<FlightInfo>> {
        Ok(Response::new(self.info(request.into_inner()).await?))
    }

    async fn get_schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Answer<Response<SchemaResult>> {
        self.info(request.into_inner()).await?;
        let options = IpcWriteOptions::default();
        let schema = shard::schema();
        let IpcMessage(schema) = SchemaAsIpc::new(&schema, &options)
            .try_into()
            .map_err(|e| Status::from(FlightError::from(e)))?;
        Ok(Response::new(SchemaResult { schema }))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Response<Self::DoGetStream>> {
        Ok(Response::new(self.rows(request.get_ref()).await?))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Answer<Response<Self::HandshakeStream>> {
        Err(not_offered("a handshake"))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<Response<PollInfo>> {
        Err(not_offered("polling"))
    }

    async fn do_put(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Answer<Response<Self::DoPutStream>> {
        Err(not_offered("writing"))
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Answer<Response<Self::DoExchangeStream>> {
        Err(not_offered("an exchange"))
    }

    async fn do_action(&self, _: Request<Action>) -> Answer<Response<Self::DoActionStream>> {
        Err(not_offered("an action"))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Answer<Response<Self::ListActionsStream>> {
        Ok(Response::new(Box::pin(stream::empty())))
    }
}
