//! The connection to NATS, and the streams that it needs on the server.

use std::time::Duration;

use async_nats::{Client, ClientError, ConnectErrorKind, ConnectOptions, Event, jetstream};
use tokio::sync::watch;

use crate::bus::presence::Away;
use crate::bus::streams;
use crate::config::NatsConfig;
use crate::error::{Class, Error, Result, scrub};
use crate::life::backoff::Backoff;
use crate::life::stop::Stopper;

/// How long a request to NATS may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

const REFUSED: &str = "NATS refuses our credentials: name a file with valid ones in \
    nats.credentials (TOGI_NATS__CREDENTIALS), or put user and password into nats.url";

const LOST: &str = "the connection is lost";

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// The state of the connection, as the client tells it.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// The number of connections so far.
    pub(super) connections: watch::Sender<u64>,
    /// Whether the server refused our credentials at the last attempt to connect.
    pub(super) refused: watch::Sender<bool>,
    /// The absence of the server.
    pub(super) away: watch::Sender<Option<Away>>,
}

pub(super) async fn dial(config: &NatsConfig, name: &str, heard: Heard) -> Result<Client> {
    let wrong =
        |what: &str| Error::invalid("nats.url", format!("\"{}\" {what}", scrub(&config.url)));
    let addresses: Vec<async_nats::ServerAddr> = config
        .url
        .split(',')
        .map(|address| address.trim().parse())
        .collect::<std::io::Result<_>>()
        .map_err(|_| wrong("is not an address such as nats://127.0.0.1:4222"))?;
    let mut options = ConnectOptions::new()
        .name(name)
        .retry_on_initial_connect()
        .connection_timeout(Duration::from_secs(5))
        .request_timeout(Some(REQUEST_TIMEOUT))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(|attempt| {
            RECONNECT.after(u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX))
        })
        .event_callback(move |event| {
            let heard = heard.clone();
            async move { heard.note(&event) }
        });
    if let Some(file) = &config.credentials {
        options = options.credentials_file(file).await.map_err(|error| {
            Error::invalid("nats.credentials", "the credentials file cannot be used")
                .with_source(error)
        })?;
    }
    options
        .connect(addresses)
        .await
        .map_err(|error| wrong("cannot be used").with_source(error))
}

impl Heard {
    fn note(&self, event: &Event) {
        match event {
            Event::Connected => {
                tracing::info!("NATS connected");
                self.refused.send_replace(false);
                self.connections.send_modify(|count| *count += 1);
            }
            Event::Disconnected => {
                tracing::warn!("NATS disconnected; connecting again");
                self.away.send_replace(Some(Away::unconnected(LOST)));
            }
            Event::ClientError(ClientError::Other(text)) => {
                if is_refusal(text) {
                    self.refused.send_replace(true);
                }
                let reason = format!("it cannot be connected: {}", scrub(text));
                self.away.send_if_modified(|away| {
                    let known = away.as_mut().filter(|known| known.reason != reason);
                    known.map(|known| known.reason = reason).is_some()
                });
            }
            other => tracing::debug!(event = %other, "NATS"),
        }
    }
}

/// Whether an attempt to connect failed by our credentials. The client tells only the text of the
/// kind.
fn is_refusal(text: &str) -> bool {
    [
        ConnectErrorKind::Authentication,
        ConnectErrorKind::AuthorizationViolation,
    ]
    .iter()
    .any(|kind| text == kind.to_string())
}

async fn wait_for_streams(
    js: &jetstream::Context,
    config: &NatsConfig,
    mut refused: watch::Receiver<bool>,
    stopper: &Stopper,
) -> Result<()> {
    let mut backoff = BACKOFF;
    loop {
        let ensured = async {
            tokio::select! {
                result = streams::ensure(js, config.replicas) => result,
                Ok(_) = refused.wait_for(|refused| *refused) => Err(Error::precondition(REFUSED)),
            }
        };
        let ensured = stopper.run(ensured).await;
        match ensured {
            Some(Err(error)) if error.class() == Class::Unavailable => {
                let url = scrub(&config.url);
                tracing::warn!(url, error = error.chain(), "waiting for NATS");
            }
            Some(result) => return result,
            None => {
                return Err(Error::new(
                    Class::Cancelled,
                    "stopped before NATS was there",
                ));
            }
        }
        backoff.wait(stopper).await;
    }
}

/// Whether NATS can be used: `None` while it is waited for, then the error that no wait mends.
pub(super) type Usable = Option<std::result::Result<(), (Class, String)>>;

/// The facts that decide when streams are created.
pub(super) struct Keeper {
    pub(super) js: jetstream::Context,
    pub(super) config: NatsConfig,
    pub(super) connections: watch::Receiver<u64>,
    pub(super) refused: watch::Receiver<bool>,
    pub(super) usable: watch::Sender<Usable>,
    pub(super) stopper: Stopper,
}

impl Keeper {
    /// Creates missing streams after every connection, because the server may be a new one with an
    /// empty folder.
    pub(super) async fn keep(self) {
        let Self {
            js,
            config,
            mut connections,
            refused,
            usable,
            stopper,
        } = self;
        let first = wait_for_streams(&js, &config, refused, &stopper).await;
        let first = first.map_err(|error| {
            if error.class() != Class::Cancelled {
                tracing::error!(error = error.chain(), "NATS cannot be used");
            }
            (error.class(), error.message().to_owned())
        });
        usable.send_replace(Some(first));
        connections.mark_unchanged();
        while let Some(Ok(())) = stopper.run(connections.changed()).await {
            let mut backoff = BACKOFF;
            while let Err(error) = streams::ensure(&js, config.replicas).await {
                if error.class() != Class::Unavailable {
                    tracing::error!(
                        error = error.chain(),
                        "NATS came back with streams that contradict"
                    );
                    break;
                }
                if !backoff.wait(&stopper).await {
                    return;
                }
            }
        }
    }
}
