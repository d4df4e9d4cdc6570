//! `togi events`: prints events as they happen.

use std::time::{Duration, SystemTime};

use clap::Args;
use futures::StreamExt;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use togi_runtime::bus::reader::{Received, Start};
use togi_runtime::config::NatsConfig;
use togi_runtime::events::EventKind;
use togi_runtime::{Bus, Event, Stopper};
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::session::Session;
use crate::table::{pad, shorten};

const EXAMPLES: &str = "\
Examples:
  togi events
  togi events --all                        from the oldest that is still stored
  togi events adapter.promoted job.failed
  togi events -o json | jq .data";

const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Events {
    /// Which events, for example dataset.ready [default: all]
    #[arg(value_name = "EVENT", value_parser = kind)]
    pub events: Vec<EventKind>,
    /// Starts with the oldest event that is still stored
    #[arg(long)]
    pub all: bool,
    /// Stops after this many events
    #[arg(long, short = 'n', value_name = "EVENTS")]
    pub count: Option<usize>,
}

/// An event as JSON: CloudEvents' structured form.
#[derive(Serialize)]
struct Line<'a> {
    specversion: &'static str,
    id: &'a str,
    #[serde(rename = "type")]
    type_name: &'a str,
    source: &'a str,
    subject: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    traceparent: &'a str,
    data: serde_json::Value,
}

impl Events {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let url = session.settings.nats.clone().ok_or_else(|| {
            Error::Usage(
                "no NATS server is known: start `togi up`, or name one with --nats".to_owned(),
            )
        })?;
        let connecting = async {
            let bus = Bus::connect(&NatsConfig::at(&url), "togi-events", &Stopper::new()).await?;
            let start = if self.all { Start::All } else { Start::New };
            let events = bus.events(&self.events, start).await?;
            Ok::<_, togi_runtime::Error>((events, bus.presence()))
        };
        let connected = timeout(CONNECT_WITHIN, connecting).await;
        let (stream, mut presence) = connected
            .map_err(|_| Error::Unavailable(format!("no NATS server answers at {url}")))??;
        session.output.say("following events; Ctrl-C ends");
        let mut stream = stream.take(self.count.unwrap_or(usize::MAX));
        let mut is_away = false;
        loop {
            tokio::select! {
                received = stream.next() => match received {
                    Some(received) => print(session, &received)?,
                    None => return Ok(()),
                },
                Ok(()) = presence.changed() => {
                    let away = presence.borrow_and_update().clone();
                    match away {
                        Some(away) if !is_away => {
                            is_away = true;
                            session.output.say(togi_runtime::Error::from(away));
                        }
                        None if is_away => {
                            is_away = false;
                            session.output.say("NATS is back");
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

fn kind(name: &str) -> std::result::Result<EventKind, String> {
    EventKind::from_name(name).ok_or_else(|| {
        let names: Vec<_> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("it is one of {}", names.join(", "))
    })
}

fn print(session: &Session, received: &Received) -> Result<()> {
    let Received { event, meta } = received;
    let data = event.body()?;
    let data: serde_json::Value = serde_json::from_slice(&data).unwrap_or_default();
    let time = meta
        .time
        .and_then(|time: SystemTime| Timestamp::try_from(time).ok());
    if session.output.is_json() {
        return session.output.json(&Line {
            specversion: "1.0",
            id: &meta.id,
            type_name: &meta.type_name,
            source: &meta.source,
            subject: &meta.subject,
            time: time.map(|time| time.to_string()),
            traceparent: &meta.traceparent,
            data,
        });
    }
    let time = time.map(|time| {
        time.to_zoned(TimeZone::system())
            .strftime("%H:%M:%S")
            .to_string()
    });
    let name = pad(event.kind().name(), 20);
    let words = words(event, &data);
    let about = pad(&shorten(event.about(), 20), 20);
    session.output.line(&format!(
        "{}  {name}  {about}  {words}",
        time.unwrap_or_default()
    ))
}

/// Writes an event's fields in short, except the one that the event is about.
fn words(event: &Event, data: &serde_json::Value) -> String {
    let shown = fields(data).filter_map(|(name, value)| {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        let columns = if matches!(name.as_str(), "message" | "reason" | "notMeasured") {
            100
        } else {
            24
        };
        (text != event.about() && name != "manifest")
            .then(|| format!("{name}={}", shorten(&text, columns)))
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Returns a body's fields; those of a nested message are flattened.
fn fields(data: &serde_json::Value) -> impl Iterator<Item = (&String, &serde_json::Value)> {
    let outer = data.as_object().into_iter().flatten();
    outer.flat_map(|(name, value)| match value.as_object() {
        Some(inner) => inner.iter().collect(),
        None => vec![(name, value)],
    })
}

#[cfg(test)]
mod tests {
    use togi_proto::events::v1::{AdapterLoaded, BaseMismatch, JobFailed};

    use super::*;

    #[test]
    fn a_line_names_what_the_event_says() {
        let failed = JobFailed {
            job: "j1".into(),
            kind: "train".into(),
            code: "INTERNAL".into(),
            message: "火事".into(),
        };
        let event = Event::from(failed);
        let data = serde_json::from_slice(&event.body().unwrap()).unwrap();
        let mut said: Vec<String> = words(&event, &data).split(' ').map(str::to_owned).collect();
        said.sort();
        assert_eq!(said, ["code=INTERNAL", "kind=train", "message=火事"]);
        let loaded = AdapterLoaded {
            alias: "a".into(),
            base_mismatch: Some(BaseMismatch {
                trained_precision: "nf4".into(),
                max_abs_logit_difference: Some(0.5),
                ..Default::default()
            }),
            ..Default::default()
        };
        let event = Event::from(loaded);
        let data = serde_json::from_slice(&event.body().unwrap()).unwrap();
        let said = words(&event, &data);
        assert!(
            said.contains("trainedPrecision=nf4") && said.contains("maxAbsLogitDifference=0.5"),
            "{said}"
        );
        assert!(kind("job.failed").is_ok());
        assert!(
            kind("job.exploded")
                .unwrap_err()
                .contains("adapter.rolled-back")
        );
    }
}
