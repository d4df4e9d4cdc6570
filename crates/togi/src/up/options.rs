//! The options of `togi up`, as its command line and the demonstration give them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use togi_model::DeviceName;

use crate::embedded;
use crate::settings::File;

/// The default address of gRPC.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7670";
/// The default address of metrics and health.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:7680";

/// The options of `togi up`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data folder.
    pub data: PathBuf,
    /// Where gRPC listens; port 0 for any free one.
    pub listen: SocketAddr,
    /// Where metrics and health are; port 0 for any free one.
    pub admin: SocketAddr,
    /// The base that inference serves; without one there is no inference.
    pub serve: Option<String>,
    /// The URL of a running NATS server; without one, a child process is started.
    pub nats: Option<String>,
    /// Where trainer and inference compute.
    pub device: DeviceName,
    /// The precisions in which inference holds bases, by name; they override the file's.
    pub precisions: BTreeMap<String, String>,
    /// The configuration file: bases, the store, and each service's own settings.
    pub file: File,
}

impl Options {
    /// Returns the options for a data folder, with free ports and other defaults, for tests and the
    /// demonstration.
    pub fn in_folder(data: impl Into<PathBuf>) -> Self {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data: data.into(),
            listen: anywhere,
            admin: anywhere,
            serve: Some(embedded::BASE.to_owned()),
            nats: None,
            device: DeviceName::Cpu,
            precisions: BTreeMap::new(),
            file: File::default(),
        }
    }
}
