//! `togi up`: runs everything on this machine until Ctrl-C.

use std::net::SocketAddr;

use clap::Args;
use togi_runtime::{Stopper, telemetry};

use crate::error::{Error, Result};
use crate::session::Session;
use crate::settings::{BaseSection, Settings};
use crate::up::{DEFAULT_ADMIN, DEFAULT_LISTEN};
use crate::up_state::UpState;
use crate::{embedded, up};

const EXAMPLES: &str = "\
Examples:
  togi up
  togi up --data /var/lib/togi --listen 127.0.0.1:9000
  togi up --base rinna=hf://rinna/japanese-gpt-neox-3.6b --serve rinna
  togi up --base mine=file:///models/mine
  togi up --base mine=file:///models/mine --base-precision mine=nf4 --serve mine
  togi up --nats nats://nats.example:4222 --store s3://models
  togi up --device cuda --base mine=file:///models/mine --serve mine

Ctrl-C stops in good order, a second one at once. Settings beyond these flags are in togi.toml.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Up {
    /// Where gRPC listens [default: 127.0.0.1:7670]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Where metrics and health are [default: 127.0.0.1:7680]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// A further base: a folder's file:// URL, an object store's, or hf://OWNER/NAME; repeatable
    #[arg(long, value_name = "NAME=URL", value_parser = base)]
    pub base: Vec<(String, String)>,
    /// The precision in which inference holds a base, as in a recipe [default: f32]; repeatable
    #[arg(long, value_name = "NAME=PRECISION", value_parser = base_precision)]
    pub base_precision: Vec<(String, String)>,
    /// The base that inference serves [default: demo]
    #[arg(long, value_name = "NAME")]
    pub serve: Option<String>,
}

impl Up {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let settings = &session.settings;
        let options = self.options(settings)?;
        let guard = telemetry::init(&settings.file.telemetry, "togi")?;
        let stopper = Stopper::on_signals().map_err(Error::Terminal)?;
        let starting = up::start(options, stopper.clone());
        // Ctrl-C also ends the wait for NATS or the store.
        let running = tokio::select! {
            running = starting => running?,
            () = stopper.stopped() => {
                stopper.released().await;
                return Err(Error::Interrupted(String::new()));
            }
        };
        let output = &session.output;
        if running.ready().await {
            output.one(running.state(), addresses)?;
            output.say("ready; Ctrl-C stops");
        }
        let outcome = running.wait().await;
        output.say("stopped");
        guard.flush().await;
        outcome
    }

    fn options(self, settings: &Settings) -> Result<up::Options> {
        let mut file = settings.file.clone();
        for (name, url) in self.base {
            let precision = None;
            file.bases.insert(name, BaseSection { url, precision });
        }
        // A flag or variable names the store, and NATS, for clients and services alike.
        file.store.url = settings.named_store.clone();
        let listen = self.listen.or(file.up.listen.clone());
        let admin = self.admin.or(file.up.admin.clone());
        Ok(up::Options {
            data: settings.data.clone(),
            listen: address("--listen", listen.as_deref().unwrap_or(DEFAULT_LISTEN))?,
            admin: address("--admin", admin.as_deref().unwrap_or(DEFAULT_ADMIN))?,
            serve: self
                .serve
                .or(file.up.serve.clone())
                .or_else(|| Some(embedded::BASE.to_owned())),
            nats: settings.named_nats.clone(),
            device: settings.device,
            precisions: self.base_precision.into_iter().collect(),
            file,
        })
    }
}

fn addresses(state: &UpState) -> Vec<String> {
    vec![
        format!("gRPC   {}", state.endpoint),
        format!("admin  {}  (/metrics, /livez, /readyz)", state.admin),
        format!("NATS   {}", state.nats.url),
        format!("store  {}", state.store),
    ]
}

fn address(flag: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        Error::Configuration(format!(
            "{flag}: {text:?} is no address; one looks like 127.0.0.1:7670"
        ))
    })
}

pub(crate) fn base(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && url.contains("://") => {
            Ok((name.to_owned(), url.to_owned()))
        }
        _ => Err("it looks like NAME=file:///models/mine".to_owned()),
    }
}

fn base_precision(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, precision)) if !name.is_empty() && !precision.is_empty() => {
            Ok((name.to_owned(), precision.to_owned()))
        }
        _ => Err("it looks like NAME=nf4".to_owned()),
    }
}
