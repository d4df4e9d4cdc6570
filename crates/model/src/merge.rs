//! Merges an adapter into its base, `W + (alpha / rank) B A`, as a plain checkpoint without LoRA.

mod settings;

use std::borrow::Cow;
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, View};

use crate::base::{self, Base};
use crate::cpu;
use crate::error::{Error, Result};
use crate::lora::{Lora, Module};
use crate::quant::rows::Rounding;
use crate::weight::Weight;

pub use settings::Special;

/// Writes base and adapter as one Hugging Face folder: `config.json` in the spellings of
/// transformers 4 and 5, `generation_config.json`, `model.safetensors`, and the base's tokenizer as
/// `spiece.model` if it has one.
///
/// The weights are written in f32, because fp16 or bf16 would round most of a small update away.
/// One tensor at a time is computed and written, so that little more memory is used than for the
/// base.
///
/// # Errors
/// The adapter does not fit the base, or a file cannot be written.
pub fn write_merged(dir: &Path, base: &Base, lora: &Lora, special: &Special) -> Result<()> {
    lora.check_fits(base.config())?;
    let mut tensors = Vec::new();
    for (name, _) in base.config().shapes() {
        let weight = base.weight(&name)?;
        let update = lora
            .modules()
            .iter()
            .find(|module| name == module.weight_name())
            .map(|module| Update {
                module,
                values: lora.values(),
            });
        let merged = Merged {
            shape: weight.shape(),
            values: values(weight)?,
            update,
        };
        tensors.push((name, merged));
    }
    base::save(dir, &settings::config(base, special)?, tensors)?;
    let generation = dir.join("generation_config.json");
    std::fs::write(&generation, settings::generation(base, special)?)
        .map_err(|e| Error::file(generation, e))?;
    if let Some(tokenizer) = base.tokenizer() {
        let path = dir.join("spiece.model");
        std::fs::write(&path, tokenizer).map_err(|e| Error::file(path, e))?;
    }
    Ok(())
}

/// A weight of the base, and the adapter's update of it.
struct Merged<'a> {
    shape: Vec<usize>,
    values: Values<'a>,
    update: Option<Update<'a>>,
}

/// Computes a weight's values.
type Values<'a> = Box<dyn Fn() -> Vec<f32> + 'a>;

fn values(weight: &Weight) -> Result<Values<'_>> {
    match weight.rows() {
        Ok(rows) => Ok(Box::new(move || rows.all(Rounding::AsQuantized))),
        Err(tensor) => {
            let values = cpu::read(tensor)?;
            Ok(Box::new(move || values.to_vec()))
        }
    }
}

impl View for Merged<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut values = (self.values)();
        if let Some(update) = &self.update {
            update.add_to(&mut values);
        }
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Cow::Owned(bytes.collect())
    }

    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// One module's factors.
struct Update<'a> {
    module: &'a Module,
    values: &'a [f32],
}

impl Update<'_> {
    /// Adds `scale B A` to a weight, (outputs, inputs). Sums are in f64, so that only the result is
    /// rounded.
    fn add_to(&self, weight: &mut [f32]) {
        let Module {
            rank,
            scale,
            inputs,
            ..
        } = *self.module;
        let a = &self.values[self.module.a.clone()];
        let b = &self.values[self.module.b.clone()];
        let rows = weight.par_chunks_mut(inputs).zip(b.par_chunks(rank));
        rows.for_each(|(row, b)| {
            let mut sums = vec![0.0; inputs];
            for (&b, a) in b.iter().zip(a.chunks(inputs)) {
                for (sum, &a) in sums.iter_mut().zip(a) {
                    *sum += f64::from(b) * f64::from(a);
                }
            }
            for (value, sum) in row.iter_mut().zip(sums) {
                *value = (f64::from(*value) + scale * sum) as f32;
            }
        });
    }
}
