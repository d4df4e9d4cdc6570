//! Arrow Flight: every committed data set, in any order, from any row on. Tickets are stateless: a
//! reader that lost its connection comes back with the offset that it had reached.

mod cache;
mod rows;
mod ticket;

use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, IpcMessage, PollInfo, PutResult, SchemaAsIpc,
    SchemaResult, Ticket,
};
use arrow_ipc::writer::IpcWriteOptions;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use togi_runtime::{Error, Store};
use togi_tokens::manifest::Split;
use togi_tokens::shard;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, info_span};

use crate::Result;
use crate::catalog::{Catalog, Named};
use crate::config::FlightConfig;
use crate::metrics::Metrics;
use cache::Cache;
use rows::{Rows, Shards};
use ticket::{Wanted, split_name};

/// Data sets whose information is fetched at a time while they are listed.
const LIST_PAGE: usize = 64;

/// The Flight service.
#[derive(Clone)]
pub struct Flight {
    catalog: Catalog,
    shards: Arc<Shards>,
    readers: Arc<Semaphore>,
    config: FlightConfig,
}

impl Flight {
    /// Serves what is committed in a store.
    pub fn new(store: &Store, config: FlightConfig, metrics: &Metrics) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = Shards {
            store: store.clone(),
            cache: Cache::new(config.cache_bytes),
            decoding: Semaphore::new(cores),
            metrics: metrics.clone(),
        };
        Self {
            catalog: Catalog::new(store.clone()),
            shards: Arc::new(shards),
            readers: Arc::new(Semaphore::new(config.max_readers)),
            config,
        }
    }

    async fn info(&self, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        let wanted = Wanted::from_descriptor(&descriptor)?;
        let named = self.catalog.get(&wanted.dataset).await?;
        flight_info(descriptor, &named, &wanted)
    }

    async fn rows(
        &self,
        ticket: &Ticket,
    ) -> Result<BoxStream<'static, Result<FlightData, Status>>> {
        let wanted = Wanted::from_ticket(ticket)?;
        let manifest = self.catalog.manifest(&wanted.dataset).await?;
        check_offset(&wanted, manifest.rows(wanted.split))?;
        let permit = self.readers.clone().try_acquire_owned().map_err(|_| {
            let text = "too many readers at the same time; try again later";
            Error::new(togi_runtime::Class::ResourceExhausted, text)
        })?;
        let span = info_span!(
            "read_rows",
            dataset = wanted.dataset,
            offset = wanted.offset
        );
        let FlightConfig {
            window_rows,
            batch_rows,
            ..
        } = self.config;
        let shards = self.shards.clone();
        let rows = Rows::new(shards, Arc::new(manifest), &wanted, window_rows, batch_rows);
        let schema = wanted.schema()?;
        let windows = stream::try_unfold((rows, permit), move |(mut rows, permit)| {
            let next = async move {
                let window = rows
                    .next_window()
                    .await
                    .map_err(Error::from)
                    .map_err(Status::from)?;
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

    /// Every name's newest revision, page by page, each with one information a split that has rows.
    fn all(self, prefix: String) -> impl Stream<Item = Result<FlightInfo, Status>> {
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
    let wanted = Wanted {
        dataset: named.name.clone(),
        split,
        shuffle: None,
        offset: 0,
        columns: Vec::new(),
    };
    flight_info(FlightDescriptor::new_path(path), named, &wanted)
}

fn flight_info(descriptor: FlightDescriptor, named: &Named, wanted: &Wanted) -> Result<FlightInfo> {
    let manifest = &named.manifest;
    let rows = manifest.rows(wanted.split);
    check_offset(wanted, rows)?;
    let bytes: u64 = manifest.of(wanted.split).map(|part| part.size_bytes).sum();
    let ticket = wanted.to_ticket(&manifest.dataset)?;
    let info = FlightInfo::new()
        .try_with_schema(wanted.schema()?.as_ref())
        .map_err(|e| Error::internal("the schema could not be written").with_source(e))?
        .with_descriptor(descriptor)
        // No location: at the same service.
        .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
        .with_total_records(i64::try_from(rows - wanted.offset).unwrap_or(i64::MAX))
        .with_total_bytes(i64::try_from(bytes).unwrap_or(i64::MAX))
        .with_ordered(true);
    Ok(info)
}

fn check_offset(wanted: &Wanted, rows: u64) -> Result<()> {
    if wanted.offset > rows {
        let text = format!(
            "offset {} is behind the end: the split has {rows} rows",
            wanted.offset
        );
        return Err(Error::invalid("ticket.offset", text));
    }
    Ok(())
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
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
    ) -> Result<Response<FlightInfo>, Status> {
        Ok(Response::new(self.info(request.into_inner()).await?))
    }

    async fn get_schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        self.info(request.into_inner()).await?;
        let options = IpcWriteOptions::default();
        let schema = shard::schema();
        let IpcMessage(schema) = SchemaAsIpc::new(&schema, &options)
            .try_into()
            .map_err(|e| Status::from(FlightError::from(e)))?;
        Ok(Response::new(SchemaResult { schema }))
    }

    async fn do_get(
        &self,
        request: Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        Ok(Response::new(self.rows(request.get_ref()).await?))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(not_offered("a handshake"))
    }

    async fn poll_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        Err(not_offered("polling"))
    }

    async fn do_put(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        Err(not_offered("writing"))
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(not_offered("an exchange"))
    }

    async fn do_action(
        &self,
        _: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        Err(not_offered("an action"))
    }

    async fn list_actions(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(Box::pin(stream::empty())))
    }
}
