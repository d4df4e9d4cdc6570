//! Settings. `default.toml` is the full list with comments; files and the environment change it.
//! [`Config::load`] returns checked settings.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use togi_model::{DeviceName, Precision};
use togi_runtime::config::{BasesConfig, ListenConfig, NatsConfig, StoreConfig, TelemetryConfig};
use togi_runtime::process::Sections;

use crate::error::{Error, Result};

/// The defaults.
pub const DEFAULTS: &str = include_str!("../default.toml");

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the base that is served.
    pub base: String,
    /// Where the engine computes.
    pub device: DeviceName,
    /// Bases by name.
    pub bases: BasesConfig,
    /// Folder for bases that must be copied from an object store.
    pub cache: PathBuf,
    /// Where to listen.
    pub listen: ListenConfig,
    /// Coordination.
    pub nats: NatsConfig,
    /// The object store.
    pub store: StoreConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// The engine's thread.
    pub engine: EngineConfig,
    /// Adapters over the base.
    pub adapters: AdaptersConfig,
    /// How the process ends.
    pub stop: StopConfig,
}

/// Limits of the engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// Most answers that progress together; the device's own number if not set.
    pub max_active: Option<usize>,
    /// Bytes for keys and values; the device's own number if not set.
    pub cache_bytes: Option<u64>,
    /// Bytes of keys and values that are kept for prompts with the same beginning, 0 for none; the
    /// device's own number if not set.
    pub prefix_cache_bytes: Option<u64>,
    /// Most requests that wait.
    pub max_waiting: usize,
    /// Most prompt tokens that wait.
    pub max_waiting_tokens: usize,
    /// Most tokens of one prompt that a round reads.
    pub prefill_chunk: usize,
    /// Most tokens of all prompts that a round reads; the device's own number if not set.
    pub prompt_tokens_per_round: Option<usize>,
    /// Longest prompt, in bytes.
    pub max_prompt_bytes: usize,
}

impl EngineConfig {
    /// Returns the most answers that progress together on a device.
    pub fn max_active_on(&self, device: DeviceName) -> usize {
        self.max_active.unwrap_or(match device {
            DeviceName::Cpu => 16,
            DeviceName::Cuda { .. } => 128,
        })
    }

    /// Returns the bytes for keys and values on a device; `None` for all that the device has free.
    pub fn cache_bytes_on(&self, device: DeviceName) -> Option<u64> {
        self.cache_bytes.or(match device {
            DeviceName::Cpu => Some(4 << 30),
            DeviceName::Cuda { .. } => None,
        })
    }

    /// Returns the bytes of keys and values that are kept for prompts with the same beginning;
    /// `None` for all that no answer needs.
    pub fn prefix_cache_bytes_on(&self, device: DeviceName) -> Option<u64> {
        self.prefix_cache_bytes.or(match device {
            DeviceName::Cpu => Some(1 << 30),
            DeviceName::Cuda { .. } => None,
        })
    }

    /// Returns the most prompt tokens that a round reads on a device.
    pub fn prompt_tokens_on(&self, device: DeviceName) -> usize {
        self.prompt_tokens_per_round.unwrap_or(match device {
            DeviceName::Cpu => 64,
            DeviceName::Cuda { .. } => 512,
        })
    }
}

/// Limits of adapters.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptersConfig {
    /// Bytes of the adapters on the device; the device's own number if not set.
    pub device_bytes: Option<u64>,
    /// Bytes of the adapters in main memory; the device's own number if not set.
    pub host_bytes: Option<u64>,
    /// Largest tensor file, in bytes.
    pub max_bytes: u64,
    /// Time after which a load is given up.
    pub load_timeout_seconds: u64,
    /// Time between two readings of the aliases.
    pub reconcile_seconds: f64,
}

impl AdaptersConfig {
    /// Returns the bytes of the adapters on a device; `None` for those of the GPU's memory plan.
    pub fn device_bytes_on(&self, device: DeviceName) -> Option<u64> {
        self.device_bytes.or(match device {
            DeviceName::Cpu => Some(2 << 30),
            DeviceName::Cuda { .. } => None,
        })
    }

    /// Returns the bytes of the adapters in main memory beside a device. The CPU's are in main
    /// memory already.
    pub fn host_bytes_beside(&self, device: DeviceName) -> u64 {
        self.host_bytes.unwrap_or(match device {
            DeviceName::Cpu => 1 << 30,
            DeviceName::Cuda { .. } => 4 << 30,
        })
    }

    /// Returns the time after which a load is given up.
    pub fn load_timeout(&self) -> Duration {
        Duration::from_secs(self.load_timeout_seconds)
    }

    /// Returns the time between two readings of the aliases.
    pub fn reconcile_period(&self) -> Duration {
        Duration::from_secs_f64(self.reconcile_seconds)
    }
}

/// How the process ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopConfig {
    /// Time that running answers have after the stop signal.
    pub grace_seconds: u64,
}

impl StopConfig {
    /// Returns the time that running answers have after the stop signal.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}

impl Sections for Config {
    fn nats(&self) -> &NatsConfig {
        &self.nats
    }

    fn store(&self) -> &StoreConfig {
        &self.store
    }

    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn listen(&self) -> &ListenConfig {
        &self.listen
    }

    /// Serving continues without events: the store has the truth.
    fn waits_for_bus(&self) -> bool {
        false
    }
}

impl Config {
    /// Reads the defaults, the files in their order, and the environment.
    ///
    /// # Errors
    /// A setting that is unknown, of a wrong type, or out of its range.
    pub fn load(files: &[PathBuf]) -> togi_runtime::Result<Config> {
        let check = |config: &Config| {
            config.nats.check()?;
            Ok(config.check()?)
        };
        togi_runtime::config::load(DEFAULTS, files, "TOGI", check)
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first wrong setting.
    pub fn check(&self) -> Result<()> {
        let or_1 = |setting: Option<usize>| setting.unwrap_or(1) as u64;
        let counts = [
            ("engine.max_active", or_1(self.engine.max_active)),
            ("engine.cache_bytes", self.engine.cache_bytes.unwrap_or(1)),
            (
                "engine.max_waiting_tokens",
                self.engine.max_waiting_tokens as u64,
            ),
            ("engine.prefill_chunk", self.engine.prefill_chunk as u64),
            (
                "engine.prompt_tokens_per_round",
                or_1(self.engine.prompt_tokens_per_round),
            ),
            (
                "engine.max_prompt_bytes",
                self.engine.max_prompt_bytes as u64,
            ),
            (
                "adapters.device_bytes",
                self.adapters.device_bytes.unwrap_or(1),
            ),
            ("adapters.max_bytes", self.adapters.max_bytes),
            (
                "adapters.load_timeout_seconds",
                self.adapters.load_timeout_seconds,
            ),
        ];
        for (setting, value) in counts {
            if value == 0 {
                return Err(Error::Setting {
                    setting: setting.into(),
                    reason: "must be at least 1".into(),
                });
            }
        }
        let seconds = self.adapters.reconcile_seconds;
        if Duration::try_from_secs_f64(seconds).map_or(true, |period| period.is_zero()) {
            return Err(Error::Setting {
                setting: "adapters.reconcile_seconds".into(),
                reason: format!("must be over 0, not {seconds}"),
            });
        }
        if !self.bases.contains_key(&self.base) {
            let known: Vec<&str> = self.bases.keys().map(String::as_str).collect();
            let reason = format!("{:?} is none of [bases]: {}", self.base, known.join(", "));
            return Err(Error::Setting {
                setting: "base".into(),
                reason,
            });
        }
        for name in self.bases.keys() {
            self.precision(name)?;
        }
        Ok(())
    }

    /// Returns the precision of a base's weights.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown precision.
    pub fn precision(&self, base: &str) -> Result<Precision> {
        let written = self
            .bases
            .get(base)
            .and_then(|base| base.precision.as_deref());
        let Some(written) = written else {
            return Ok(Precision::F32);
        };
        Precision::from_name(written).map_err(|_| Error::Setting {
            setting: format!("bases.{base}.precision"),
            reason: format!(
                "{written:?} is none of {}",
                Precision::ALL.map(Precision::name).join(", ")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> togi_runtime::Result<Config> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&[file])
    }

    const BASE: &str = "[bases]\ndemo = { url = \"file:///b\" }\n";

    #[test]
    fn the_defaults_are_complete_but_for_the_base() {
        let config = load(BASE).unwrap();
        assert_eq!(config.adapters.reconcile_period(), Duration::from_secs(30));
        let error = load("").unwrap_err();
        assert!(error.message().contains("base"), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (section, key) in [
            ("engine", "max_active"),
            ("engine", "cache_bytes"),
            ("engine", "max_waiting_tokens"),
            ("engine", "prefill_chunk"),
            ("engine", "prompt_tokens_per_round"),
            ("adapters", "device_bytes"),
            ("adapters", "reconcile_seconds"),
        ] {
            let error = load(&format!("{BASE}[{section}]\n{key} = 0\n")).unwrap_err();
            assert!(
                error.message().contains(&format!("{section}.{key}")),
                "{error}"
            );
        }
        assert!(load(&format!("{BASE}[engine]\nmax_activ = 1\n")).is_err());
    }

    #[test]
    fn what_is_not_set_is_the_devices_own() {
        let adapters = load(BASE).unwrap().adapters;
        let of = |text: &str| load(&format!("{BASE}{text}")).unwrap().engine;
        let (cpu, gpu) = (DeviceName::Cpu, DeviceName::Cuda { ordinal: 0 });
        assert_eq!(adapters.device_bytes_on(cpu), Some(2 << 30));
        assert_eq!(adapters.device_bytes_on(gpu), None);
        let beside = [cpu, gpu].map(|device| adapters.host_bytes_beside(device));
        assert_eq!(beside, [1 << 30, 4 << 30]);
        let own = of("");
        let numbers = |engine: &EngineConfig, device| {
            (
                engine.max_active_on(device),
                engine.cache_bytes_on(device),
                engine.prefix_cache_bytes_on(device),
                engine.prompt_tokens_on(device),
            )
        };
        assert_eq!(numbers(&own, cpu), (16, Some(4 << 30), Some(1 << 30), 64));
        assert_eq!(numbers(&own, gpu), (128, None, None, 512));
        let set = of(
            "[engine]\nmax_active = 3\ncache_bytes = 5\nprefix_cache_bytes = 0\n\
             prompt_tokens_per_round = 7\n",
        );
        assert_eq!(numbers(&set, cpu), (3, Some(5), Some(0), 7));
        assert_eq!(numbers(&set, gpu), (3, Some(5), Some(0), 7));
    }

    #[test]
    fn a_device_is_named_or_refused() {
        let config = load(&format!("device = \"cuda:2\"\n{BASE}")).unwrap();
        assert_eq!(config.device, DeviceName::Cuda { ordinal: 2 });
        let error = load(&format!("device = \"gpu\"\n{BASE}")).unwrap_err();
        let says = "\"gpu\" is none of cpu, cuda, cuda:N";
        assert!(error.message().contains(says), "{error}");
    }

    #[test]
    fn a_base_has_the_precision_of_its_section() {
        let with = |precision: &str| {
            load(&format!(
                "{BASE}other = {{ url = \"file:///o\", precision = {precision:?} }}\n"
            ))
        };
        let config = with("nf4").unwrap();
        assert_eq!(config.precision("other").unwrap(), Precision::Nf4);
        assert_eq!(config.precision("demo").unwrap(), Precision::F32);
        for wrong in ["int3", "NF4", ""] {
            let error = with(wrong).unwrap_err();
            let says = format!(
                "bases.other.precision: {wrong:?} is none of f32, bf16, fp16, int8, nf4, fp8"
            );
            assert!(error.message().ends_with(&says), "{error}");
        }
    }
}
