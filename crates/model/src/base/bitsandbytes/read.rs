//! Assembles quantized weights from a folder's tensors, and refuses unknown layouts.

use std::collections::BTreeMap;
use std::fmt::Debug;

use safetensors::tensor::Dtype;

use super::parts::{self, State};
use crate::base::read::{self, Entry};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::precision::Precision;
use crate::quant::{Int8, Nested, Nf4, Scales, nf4, scales};
use crate::stored::{Stored, StoredForm};
use crate::weight::Weight;

/// The tensors of a folder's quantized weights that are not assembled yet.
#[derive(Default)]
pub(crate) struct Parts(BTreeMap<String, Part>);

struct Part {
    dtype: Dtype,
    shape: Vec<usize>,
    content: Content,
}

enum Content {
    Floats(Vec<f32>),
    Bytes(Vec<u8>),
}

impl Parts {
    pub(crate) fn take(&mut self, name: String, entry: Entry<'_>) -> Result<()> {
        let part = match entry {
            Entry::Floats(floats) => {
                let values = floats.float.values(&floats.bytes);
                read::finite(&name, &values)?;
                Part {
                    dtype: floats.float.dtype(),
                    shape: floats.shape,
                    content: Content::Floats(values),
                }
            }
            Entry::Values(tensor, float) => Part {
                dtype: float.dtype(),
                shape: tensor.dims().to_vec(),
                content: Content::Floats(tensor.flatten_all()?.to_vec1()?),
            },
            Entry::Other(view) => Part {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                content: Content::Bytes(view.data().to_vec()),
            },
        };
        match self.0.insert(name.clone(), part) {
            Some(_) => Err(Error::Duplicate(name)),
            None => Ok(()),
        }
    }

    /// Assembles a weight.
    pub(crate) fn assemble(&mut self, name: &str, precision: Precision) -> Result<Stored> {
        match precision {
            Precision::Nf4 => self.nf4(name),
            _ => self.int8(name),
        }
    }

    /// Checks that no tensor is left over.
    pub(crate) fn refuse_rest(self) -> Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::Unexpected(self.0.into_keys().collect()))
        }
    }

    fn nf4(&mut self, name: &str) -> Result<Stored> {
        let (packed, _) = self.bytes(name, Dtype::U8)?;
        let about = parts::state(name);
        let (state, _) = self.bytes(&about, Dtype::U8)?;
        let state: State = serde_json::from_slice(&state).map_err(|source| Error::Json {
            what: format!("tensor {about}"),
            source,
        })?;
        expect(&about, "quant_type", &state.quant_type.as_str(), &"nf4")?;
        expect(&about, "blocksize", &state.blocksize, &nf4::BLOCK)?;
        let map = self.floats(&parts::map(name))?;
        expect(name, "quant_map", &map.as_slice(), &nf4::LEVELS.as_slice())?;
        let scales = match state.nested_offset {
            Some(offset) => self.nested(name, &state, offset as f32)?,
            None => Scales::Plain(self.floats(&parts::absmax(name))?),
        };
        let float = Float::from_name(&state.dtype)?;
        let weight = Nf4::from_parts(state.shape, float, packed, scales);
        Ok(Stored {
            form: StoredForm::InMemory(Weight::Nf4(weight.map_err(|e| of(name, &e))?.into())),
            float,
        })
    }

    fn nested(&mut self, name: &str, state: &State, offset: f32) -> Result<Scales> {
        let about = parts::state(name);
        let (size, dtype) = (state.nested_blocksize, state.nested_dtype.as_deref());
        expect(&about, "nested_blocksize", &size, &Some(scales::BLOCK))?;
        expect(&about, "nested_dtype", &dtype, &Some(Float::F32.name()))?;
        read::finite(&about, &[offset])?;
        let (codes, _) = self.bytes(&parts::absmax(name), Dtype::U8)?;
        let absmax = self.floats(&parts::nested_absmax(name))?;
        let map = self.floats(&parts::nested_map(name))?;
        let nested = Nested::from_parts(codes, absmax, map, offset);
        Ok(Scales::Nested(nested.map_err(|e| of(name, &e))?))
    }

    fn int8(&mut self, name: &str) -> Result<Stored> {
        let (codes, shape) = self.bytes(name, Dtype::I8)?;
        let absmax = self.floats(&parts::row_absmax(name))?;
        let layout = parts::layout(name);
        if self.0.contains_key(&layout) {
            let (code, _) = self.bytes(&layout, Dtype::U8)?;
            // Row by row is the only layout that is still written.
            expect(&layout, "value", &code.as_slice(), &[0].as_slice())?;
        }
        let &[rows, columns] = shape.as_slice() else {
            return Err(Error::format(format!("tensor {name}"), "is no matrix"));
        };
        let codes = codes.into_iter().map(u8::cast_signed).collect();
        let weight = Int8::from_parts([rows, columns], codes, absmax);
        Ok(Stored {
            form: StoredForm::InMemory(Weight::Int8(weight.map_err(|e| of(name, &e))?.into())),
            float: Float::Fp16,
        })
    }

    fn remove(&mut self, name: &str) -> Result<Part> {
        let part = self.0.remove(name);
        part.ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// A part's bytes, and its shape.
    fn bytes(&mut self, name: &str, expected: Dtype) -> Result<(Vec<u8>, Vec<usize>)> {
        let part = self.remove(name)?;
        match part.content {
            Content::Bytes(bytes) if part.dtype == expected => Ok((bytes, part.shape)),
            _ => Err(wrong_type(name, part.dtype, expected)),
        }
    }

    fn floats(&mut self, name: &str) -> Result<Vec<f32>> {
        let part = self.remove(name)?;
        match part.content {
            Content::Floats(values) if part.dtype == Dtype::F32 => Ok(values),
            _ => Err(wrong_type(name, part.dtype, Dtype::F32)),
        }
    }
}

fn wrong_type(name: &str, got: Dtype, expected: Dtype) -> Error {
    Error::format(
        format!("tensor {name}"),
        format!("is {got:?}, expected {expected:?}"),
    )
}

fn of(name: &str, error: &Error) -> Error {
    Error::format(format!("tensor {name}"), error.to_string())
}

fn expect<T: PartialEq + Debug>(name: &str, field: &str, got: &T, expected: &T) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::format(
        format!("tensor {name}"),
        format!("{field} {got:?} is not supported; {expected:?} is"),
    ))
}
