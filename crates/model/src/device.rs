//! Devices: their names in settings and flags, the passes that fit on them, and a GPU's name and
//! memory before an engine uses it.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

use crate::base::Base;
#[cfg(feature = "cuda")]
use crate::cuda::OpenGpu;
use crate::cut::Cut;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::gpu_limits::GpuMemory;
use crate::precision::Precision;

/// Where an engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// On the CPU, in f32.
    Cpu,
    /// On an NVIDIA GPU.
    Cuda {
        /// The GPU's number.
        ordinal: usize,
        /// The type of activations and of weights that are not quantized.
        float: Float,
    },
}

/// A device's name as in settings: `cpu`, `cuda` (which is `cuda:0`), or `cuda:N`. Together with a
/// base's precision it determines the [`Device`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DeviceName {
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// The GPU's number.
        ordinal: usize,
    },
}

/// A GPU that this build can compute on. While the value exists, the driver keeps the GPU's context
/// for this process.
#[derive(Clone)]
pub struct Gpu {
    name: String,
    uuid: String,
    #[cfg(feature = "cuda")]
    opened: OpenGpu,
}

impl DeviceName {
    /// The device for a base in a precision. On a GPU f32 and fp16 compute in their own type, all
    /// others in bf16.
    #[must_use]
    pub fn device(self, precision: Precision) -> Device {
        let float = match precision {
            Precision::F32 => Float::F32,
            Precision::Fp16 => Float::Fp16,
            _ => Float::Bf16,
        };
        match self {
            Self::Cpu => Device::Cpu,
            Self::Cuda { ordinal } => Device::Cuda { ordinal, float },
        }
    }

    /// Reads a base's folder for this device: completely for the CPU; a GPU's engine reads the
    /// mapped files itself.
    ///
    /// # Errors
    /// As [`Base::load_as`] and [`Base::open`].
    pub fn read(self, folder: &Path, precision: Precision) -> Result<Base> {
        match self {
            Self::Cpu => Base::load_as(folder, precision),
            Self::Cuda { .. } => Base::open(folder, precision),
        }
    }

    /// Opens the GPU, if the device is one, and checks that this build can compute on it.
    ///
    /// # Errors
    /// [`Error::Device`] with the figures: this build is without CUDA, a library or the GPU is
    /// missing, or the driver or the GPU is too old.
    pub fn open(self) -> Result<Option<Gpu>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda { ordinal } => Gpu::open(ordinal).map(Some),
        }
    }
}

impl Gpu {
    #[cfg(feature = "cuda")]
    fn open(ordinal: usize) -> Result<Self> {
        let opened = OpenGpu::new(ordinal)?;
        let (name, uuid) = opened.names()?;
        Ok(Self { name, uuid, opened })
    }

    #[cfg(not(feature = "cuda"))]
    fn open(ordinal: usize) -> Result<Self> {
        Err(not_built(ordinal))
    }

    /// The product name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id in NVML: `GPU-` and a UUID.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The memory as it is now.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<GpuMemory> {
        #[cfg(feature = "cuda")]
        return self.opened.memory();
        #[cfg(not(feature = "cuda"))]
        Err(not_built(0))
    }
}

impl Device {
    /// How a window of records of these lengths goes through the device: each range is a pass.
    ///
    /// A CPU pass is one micro-batch. A GPU pass holds as many records as its memory is planned
    /// for, but never more tokens than a micro-batch of the window's longest record.
    #[must_use]
    pub fn passes(
        self,
        precision: Precision,
        lengths: &[usize],
        micro_batch: usize,
    ) -> Vec<Range<usize>> {
        self.cut(precision).window(lengths, micro_batch)
    }

    pub(crate) fn cut(self, precision: Precision) -> Cut {
        match (self, precision) {
            (Self::Cpu, _) => Cut::ByRecords,
            (Self::Cuda { .. }, Precision::Nf4 | Precision::Int8) => Cut::ByTokens(2048),
            (Self::Cuda { .. }, _) => Cut::ByTokens(8192),
        }
    }
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn not_built(ordinal: usize) -> Error {
    let device = DeviceName::Cuda { ordinal };
    let reason = "this build has no GPUs; the feature `cuda` brings them";
    Error::device(device.to_string(), reason)
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = || Error::field("device", format!("{name:?} is none of cpu, cuda, cuda:N"));
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda { ordinal: 0 }),
            _ => {
                let number = name.strip_prefix("cuda:").ok_or_else(wrong)?;
                let ordinal = number.parse().map_err(|_| wrong())?;
                Ok(Self::Cuda { ordinal })
            }
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_name_and_a_name_a_device() {
        for name in ["cpu", "cuda:0", "cuda:7"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        let first: DeviceName = "cuda".parse().unwrap();
        assert_eq!(first.to_string(), "cuda:0");
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let error = wrong.parse::<DeviceName>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("invalid device: {wrong:?} is none of cpu, cuda, cuda:N")
            );
        }
    }

    #[test]
    fn a_bases_precision_decides_the_type_in_which_a_gpu_computes() {
        let gpu = DeviceName::Cuda { ordinal: 1 };
        let float = |precision| match gpu.device(precision) {
            Device::Cuda { ordinal: 1, float } => float,
            other => panic!("{other:?}"),
        };
        assert_eq!(float(Precision::F32), Float::F32);
        assert_eq!(float(Precision::Fp16), Float::Fp16);
        assert_eq!(float(Precision::Nf4), Float::Bf16);
        assert_eq!(DeviceName::Cpu.device(Precision::Nf4), Device::Cpu);
        assert!(DeviceName::Cpu.open().unwrap().is_none());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_refuses_gpus_by_name() {
        let error = "cuda:3"
            .parse::<DeviceName>()
            .unwrap()
            .open()
            .err()
            .unwrap();
        let says = "device cuda:3: this build has no GPUs; the feature `cuda` brings them";
        assert_eq!(error.to_string(), says);
    }
}
