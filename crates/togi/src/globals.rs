//! The options that every command takes; the settings are made of them and of the files.

use std::path::PathBuf;

use togi_model::DeviceName;

use crate::output::Format;

/// The options that every command takes, from the command line or the environment.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Flags {
    /// Where the services answer [default: a running `togi up`, then http://127.0.0.1:7670]
    #[arg(
        long,
        global = true,
        env = "TOGI_ENDPOINT",
        value_name = "URL",
        hide_env = true
    )]
    pub endpoint: Option<String>,
    /// Where NATS answers [default: the one of a running `togi up`]
    #[arg(
        long,
        global = true,
        env = "TOGI_NATS__URL",
        value_name = "URL",
        hide_env = true
    )]
    pub nats: Option<String>,
    /// The object store [default: the one of a running `togi up`]
    #[arg(
        long,
        global = true,
        env = "TOGI_STORE__URL",
        value_name = "URL",
        hide_env = true
    )]
    pub store: Option<String>,
    /// The data folder of `togi up` [default: .togi]
    #[arg(
        long,
        global = true,
        env = "TOGI_DATA",
        value_name = "DIR",
        hide_env = true
    )]
    pub data: Option<PathBuf>,
    /// The project file [default: togi.toml, if it exists]
    #[arg(
        long,
        global = true,
        env = "TOGI_CONFIG",
        value_name = "FILE",
        hide_env = true
    )]
    pub config: Option<PathBuf>,
    /// Where this process computes: cpu, cuda or cuda:N [default: cpu]
    #[arg(
        long,
        global = true,
        env = "TOGI_DEVICE",
        value_name = "NAME",
        hide_env = true,
        value_parser = device
    )]
    pub device: Option<DeviceName>,
    /// The format of standard output: table or json [default: table]
    #[arg(
        long,
        short,
        global = true,
        env = "TOGI_OUTPUT",
        value_name = "FORM",
        hide_env = true,
        hide_possible_values = true
    )]
    pub output: Option<Format>,
    /// No messages and no progress, only data and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// No colour; NO_COLOR says the same
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// Reads a device's name, for the command line.
fn device(name: &str) -> std::result::Result<DeviceName, String> {
    name.parse()
        .map_err(|_| "it is cpu, cuda, or cuda:N".to_owned())
}
