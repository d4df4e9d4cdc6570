//! Rows for the training loop. The reader fetches them over Arrow Flight ahead of use, within a
//! byte budget, in the ticket's order. Rows already in memory follow the same order: see
//! [`Order::places`].
//!
//! The reader waits for data-prep without a time limit. It reopens a broken stream after the last
//! received row, so that the loop sees one unbroken sequence of records.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::error::FlightError;
use arrow_flight::{FlightClient, Ticket};
use futures::StreamExt;
use togi_runtime::jobs::Wait;
use togi_runtime::life::backoff::Backoff;
use togi_runtime::rpc::client::Client;
use togi_runtime::{Class, DatasetId};
use togi_tokens::{Permutation, Row, Split, shard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tonic::Code;
use tracing::{debug, warn};

use crate::error::{Error, Result};
use crate::learn::snapshot::Progress;

/// Largest message accepted from data-prep, in bytes.
const MESSAGE_BYTES: usize = 16 << 20;
/// Consecutive streams that may end without an error and without a row before the data set counts
/// as damaged.
const EMPTY_STREAMS: u32 = 5;
/// Answers without a row that say that data-prep is at fault, after which the attempt ends. The
/// limit of attempts ends the job.
const FAULTS: u32 = 10;

/// The part that a job waits for while its rows do not come.
const DATA_PREP: &str = "data-prep";
/// A silence of data-prep after which a job waits for it.
const SILENCE: Duration = Duration::from_secs(5);
/// The pauses between a broken stream and the next.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// A request to data-prep. Its JSON is the Flight ticket.
pub(crate) enum Query<'a> {
    /// The length of each row, in the stored order.
    Lengths { dataset: DatasetId },
    /// The rows of an epoch, starting at `offset`.
    Rows {
        order: &'a Order,
        epoch: u64,
        offset: u64,
    },
}

/// Returns the number of ids in each row of a data set, in the stored order.
///
/// # Errors
/// [`Error::Data`], even if a retry could succeed.
pub async fn lengths(client: Client, dataset: DatasetId) -> Result<Vec<u32>> {
    let failed = |error: FlightError| Error::Data {
        dataset: dataset.into(),
        reason: error.to_string(),
        class: class_of(&error),
    };
    let ticket = serde_json::to_vec(&Query::Lengths { dataset })?.into();
    let mut flight = flight(client);
    let silent = |_| Error::Data {
        dataset: dataset.into(),
        reason: "it is connected and sends nothing".to_owned(),
        class: Class::Unavailable,
    };
    let asked = timeout(SILENCE, flight.do_get(Ticket { ticket }));
    let mut batches = asked.await.map_err(silent)?.map_err(failed)?;
    let mut lengths = Vec::new();
    while let Some(batch) = timeout(SILENCE, batches.next()).await.map_err(silent)? {
        lengths.extend(shard::lengths(&batch.map_err(failed)?)?);
    }
    Ok(lengths)
}

fn flight(client: Client) -> FlightClient<Client> {
    let inner = arrow_flight::flight_service_client::FlightServiceClient::new(client)
        .max_decoding_message_size(MESSAGE_BYTES);
    FlightClient::new_from_inner(inner)
}

/// A selection of rows and the order in which they are read.
#[derive(Clone, Debug)]
pub struct Order {
    /// The data set's digest.
    pub dataset: String,
    /// The rows' split.
    pub split: Split,
    /// The number of rows.
    pub rows: u64,
    /// Seed of the shuffles.
    pub seed: u64,
    /// Whether each epoch is shuffled; if not, rows come in the stored order.
    pub shuffle: bool,
    /// Passes over the rows.
    pub epochs: u64,
}

impl Order {
    /// Returns each row's position in the stored order, in reading order over all epochs: the order
    /// in which data-prep serves them for the same tickets.
    pub fn places(&self) -> impl Iterator<Item = u64> + use<> {
        let (rows, seed, shuffle) = (self.rows, self.seed, self.shuffle);
        (0..self.epochs).flat_map(move |epoch| {
            let permutation = shuffle.then(|| Permutation::new(rows, seed, epoch));
            (0..rows).filter_map(move |position| match &permutation {
                Some(permutation) => permutation.at(position),
                None => Some(position),
            })
        })
    }
}

/// A fetched row and its share of the budget. Taking the row releases the share, because a window
/// may be larger than the budget.
#[derive(Debug)]
struct Fetched {
    row: Row,
    _budget: OwnedSemaphorePermit,
}

/// The rows for the training thread; an error is the last item.
#[derive(Debug)]
pub struct Rows(mpsc::UnboundedReceiver<Result<Fetched>>);

impl Iterator for Rows {
    type Item = Result<Row>;

    /// Blocks until the next row; `None` once the reader is stopped or the last epoch is over. Must
    /// not be called from async code.
    fn next(&mut self) -> Option<Result<Row>> {
        let fetched = self.0.blocking_recv()?;
        Some(fetched.map(|fetched| fetched.row))
    }
}

/// Reads rows into a channel. The rows in the channel never exceed the budget.
pub struct Reader {
    client: FlightClient<Client>,
    order: Order,
    budget: Arc<Semaphore>,
    budget_bytes: u32,
    /// Between a broken stream and the next.
    pauses: Backoff,
    rows: mpsc::UnboundedSender<Result<Fetched>>,
    waits: watch::Sender<Option<Wait>>,
}

impl Reader {
    /// Returns a reader from data-prep and the rows that it will read.
    #[must_use]
    pub fn new(client: Client, order: Order, budget_bytes: u32) -> (Reader, Rows) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let client = flight(client);
        let budget = Arc::new(Semaphore::new(budget_bytes as usize));
        (
            Reader {
                client,
                order,
                budget,
                budget_bytes,
                pauses: PAUSES,
                rows: sender,
                waits: watch::Sender::new(None),
            },
            Rows(receiver),
        )
    }

    /// Returns what the reader waits for; the channel closes when it ends.
    #[must_use]
    pub fn waits(&self) -> watch::Receiver<Option<Wait>> {
        self.waits.subscribe()
    }

    /// Notes that data-prep does not answer, and why.
    fn waits_because(&self, reason: &str) {
        self.waits.send_if_modified(|wait| match wait {
            Some(wait) if wait.reason == reason => false,
            Some(wait) => {
                reason.clone_into(&mut wait.reason);
                true
            }
            None => {
                *wait = Some(Wait::new(DATA_PREP, reason));
                true
            }
        });
    }

    /// Notes that data-prep answers.
    fn goes_on(&self) {
        self.waits.send_if_modified(|wait| wait.take().is_some());
    }

    /// Waits for data-prep, and notes a long silence.
    async fn patiently<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        match timeout(SILENCE, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                self.waits_because("it is connected and sends nothing");
                answer.await
            }
        }
    }

    /// Reads from a position to the end of the last epoch. Also returns when the receiver is
    /// dropped, and after an error, which is the last item sent.
    pub async fn run(mut self, from: Progress) {
        let (mut epoch, mut offset) = (from.epoch, from.offset);
        while epoch < self.order.epochs {
            match self.read_epoch(epoch, offset).await {
                Ok(ControlFlow::Continue(())) => (epoch, offset) = (epoch + 1, 0),
                Ok(ControlFlow::Break(())) => return,
                Err(error) => {
                    // Without a receiver, the error is not needed.
                    let _ = self.rows.send(Err(error));
                    return;
                }
            }
        }
    }

    async fn read_epoch(&mut self, epoch: u64, mut offset: u64) -> Result<ControlFlow<()>> {
        let mut backoff = self.pauses.clone();
        let (mut empty_streams, mut faults) = (0, 0);
        while offset < self.order.rows {
            let start = offset;
            match self.read_stream(epoch, &mut offset).await {
                Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
                Ok(ControlFlow::Continue(())) if offset == self.order.rows => break,
                Ok(ControlFlow::Continue(())) => {
                    empty_streams = if offset == start {
                        empty_streams + 1
                    } else {
                        0
                    };
                    if empty_streams == EMPTY_STREAMS {
                        let reason = format!(
                            "epoch {epoch} ends after {offset} of {} rows",
                            self.order.rows
                        );
                        return Err(self.data_error(Class::DataLoss, reason));
                    }
                }
                Err(error) if waiting_helps(&error) && faults < FAULTS => {
                    faults += u32::from(is_fault(&error));
                    warn!(epoch, offset, %error, "data-prep does not answer; the rows are asked for again");
                    self.waits_because(&reason(&error));
                }
                Err(error) => return Err(self.data_error(class_of(&error), error.to_string())),
            }
            if offset > start {
                faults = 0;
                backoff.reset();
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.step()) => {}
                () = self.rows.closed() => return Ok(ControlFlow::Break(())),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads one Flight stream from `offset` on and advances `offset` with each row.
    async fn read_stream(
        &mut self,
        epoch: u64,
        offset: &mut u64,
    ) -> std::result::Result<ControlFlow<()>, FlightError> {
        let query = Query::Rows {
            order: &self.order,
            epoch,
            offset: *offset,
        };
        let ticket = serde_json::to_vec(&query)
            .map_err(|error| FlightError::from_external_error(Box::new(error)))?;
        debug!(epoch, offset = *offset, "asking data-prep for rows");
        let mut client = FlightClient::new_from_inner(self.client.inner().clone());
        let ticket = Ticket {
            ticket: ticket.into(),
        };
        let mut batches = self.patiently(client.do_get(ticket)).await?;
        while let Some(batch) = self.patiently(batches.next()).await {
            let rows = shard::from_batch(&batch?)
                .map_err(|error| FlightError::DecodeError(error.to_string()))?;
            self.goes_on();
            for row in rows {
                if *offset == self.order.rows {
                    return Err(FlightError::DecodeError(format!(
                        "there are more than {} rows",
                        self.order.rows
                    )));
                }
                let bytes = row_bytes(&row).min(self.budget_bytes);
                let Ok(budget) = Arc::clone(&self.budget).acquire_many_owned(bytes).await else {
                    return Ok(ControlFlow::Break(()));
                };
                if self
                    .rows
                    .send(Ok(Fetched {
                        row,
                        _budget: budget,
                    }))
                    .is_err()
                {
                    return Ok(ControlFlow::Break(()));
                }
                *offset += 1;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn data_error(&self, class: Class, reason: String) -> Error {
        Error::Data {
            dataset: self.order.dataset.clone(),
            reason,
            class,
        }
    }
}

fn row_bytes(row: &Row) -> u32 {
    let bytes = size_of::<Fetched>()
        + row.sample_id.len()
        + row.category.len()
        + 4 * (row.input_ids.len() + row.labels.len());
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Returns why data-prep does not answer: the deepest cause, as the connection's error has it.
fn reason(error: &FlightError) -> String {
    let FlightError::Tonic(status) = error else {
        return error.to_string();
    };
    let mut cause = std::error::Error::source(&**status);
    let mut deepest = status.message().to_owned();
    while let Some(error) = cause {
        deepest = match error.downcast_ref::<std::io::Error>() {
            Some(error) => error.kind().to_string(),
            None => error.to_string(),
        };
        cause = error.source();
    }
    deepest
}

/// Whether an error may be a fault of data-prep that asking again does not cure.
fn is_fault(error: &FlightError) -> bool {
    let FlightError::Tonic(status) = error else {
        return false;
    };
    matches!(status.code(), Code::Internal | Code::Unknown)
}

/// Whether a retry may succeed: data-prep is unreachable or overloaded, or the connection broke.
fn waiting_helps(error: &FlightError) -> bool {
    match error {
        FlightError::Tonic(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Cancelled
                | Code::Aborted
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Internal
        ),
        _ => false,
    }
}

fn class_of(error: &FlightError) -> Class {
    match error {
        FlightError::Tonic(status) => match status.code() {
            Code::NotFound => Class::NotFound,
            Code::InvalidArgument => Class::InvalidArgument,
            Code::FailedPrecondition => Class::FailedPrecondition,
            Code::Unimplemented => Class::Unimplemented,
            Code::DataLoss => Class::DataLoss,
            _ => Class::Internal,
        },
        _ => Class::DataLoss,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use togi_runtime::rpc;

    use super::*;

    fn order(rows: u64) -> Order {
        Order {
            dataset: "d".to_owned(),
            split: Split::Train,
            rows,
            seed: 1,
            shuffle: true,
            epochs: 2,
        }
    }

    /// The error that ends a reader whose data-prep answers each request with this code, and the
    /// number of its requests.
    async fn ended_by(code: Code) -> (Error, u32) {
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        let answer = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let status = tonic::Status::new(code, "it is at fault");
            std::future::ready(
                status
                    .into_http::<tonic::body::Body>()
                    .map(axum::body::Body::new),
            )
        };
        let services = tonic::service::Routes::from(axum::Router::new().fallback(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let serving = tonic::transport::Server::builder().add_routes(services);
        let serving = tokio::spawn(serving.serve_with_incoming(incoming));
        let client = rpc::client::channel(&endpoint).unwrap();
        let (mut reader, mut rows) = Reader::new(client, order(7), 1 << 20);
        reader.pauses = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        reader.run(Progress::default()).await;
        serving.abort();
        let last = tokio::task::spawn_blocking(move || rows.next().unwrap());
        (
            last.await.unwrap().unwrap_err(),
            asked.load(Ordering::Relaxed),
        )
    }

    #[tokio::test]
    async fn a_data_prep_that_is_at_fault_is_asked_ten_times_more_and_then_ends_the_attempt() {
        for (code, class, requests) in [
            (Code::Internal, Class::Internal, 1 + FAULTS),
            (Code::Unknown, Class::Internal, 1 + FAULTS),
            (Code::DataLoss, Class::DataLoss, 1),
            (Code::FailedPrecondition, Class::FailedPrecondition, 1),
        ] {
            let (error, asked) = ended_by(code).await;
            assert_eq!(asked, requests, "{code:?}");
            assert_eq!(togi_runtime::Error::from(error).class(), class, "{code:?}");
        }
    }

    #[test]
    fn every_epoch_reads_every_row_once() {
        let mut order = order(7);
        let places: Vec<u64> = order.places().collect();
        let (first, second) = places.split_at(7);
        assert_ne!(first, second, "a new order every epoch");
        for epoch in [first, second] {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..7), "{epoch:?}");
        }
        order.shuffle = false;
        assert!(order.places().eq((0..7).chain(0..7)));
    }

    #[test]
    fn only_what_waiting_cures_is_waited_for() {
        let status = |code| FlightError::Tonic(Box::new(tonic::Status::new(code, "x")));
        for code in [Code::Unavailable, Code::Cancelled, Code::ResourceExhausted] {
            assert!(waiting_helps(&status(code)));
        }
        for code in [
            Code::NotFound,
            Code::InvalidArgument,
            Code::FailedPrecondition,
            Code::DataLoss,
        ] {
            assert!(!waiting_helps(&status(code)));
        }
        assert!(!waiting_helps(&FlightError::DecodeError("x".into())));
        assert_eq!(class_of(&status(Code::NotFound)), Class::NotFound);
        assert_eq!(
            class_of(&FlightError::DecodeError("x".into())),
            Class::DataLoss
        );
    }
}
