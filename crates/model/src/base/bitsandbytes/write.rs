//! The tensors that a quantized weight is written as.

use std::borrow::Cow;

use safetensors::View;
use safetensors::tensor::Dtype;

use super::parts::{self, State};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::quant::{Int8, Nf4, Scales, nf4, scales};
use crate::stored::Stored;
use crate::weight::Weight;

/// A tensor to be written.
pub(crate) struct Outgoing<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Data<'a>,
}

enum Data<'a> {
    Bytes(Cow<'a, [u8]>),
    /// Converted to bytes when they are written.
    Codes(&'a [i8]),
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.data {
            Data::Bytes(bytes) => Cow::Borrowed(bytes),
            Data::Codes(codes) => codes.iter().map(|code| code.cast_unsigned()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        match &self.data {
            Data::Bytes(bytes) => bytes.len(),
            Data::Codes(codes) => codes.len(),
        }
    }
}

/// The tensors of a weight, with their names. A weight that is not quantized has the type of its
/// file.
pub(crate) fn outgoing<'a>(name: &str, stored: &'a Stored) -> Result<Vec<(String, Outgoing<'a>)>> {
    match stored.form.weight()? {
        Weight::Full(tensor) => {
            let values = tensor.flatten_all()?.to_vec1()?;
            let tensor = floats(stored.float, tensor.dims().to_vec(), &values);
            Ok(vec![(name.to_owned(), tensor)])
        }
        Weight::Nf4(nf4) => of_nf4(name, nf4),
        Weight::Int8(int8) => Ok(of_int8(name, int8)),
        Weight::Half(_) | Weight::Fp8(_) => {
            let reason = "is neither NF4 nor 8-bit integers";
            Err(Error::format(format!("tensor {name}"), reason))
        }
    }
}

fn of_nf4<'a>(name: &str, weight: &'a Nf4) -> Result<Vec<(String, Outgoing<'a>)>> {
    let mut state = State {
        quant_type: "nf4".into(),
        blocksize: nf4::BLOCK,
        dtype: weight.float().name().into(),
        shape: weight.shape(),
        nested_blocksize: None,
        nested_dtype: None,
        nested_offset: None,
    };
    let packed = weight.packed();
    let mut tensors = vec![
        (name.to_owned(), bytes(vec![packed.len(), 1], packed.into())),
        (parts::map(name), vector(&nf4::LEVELS)),
    ];
    match weight.scales() {
        Scales::Plain(absmax) => tensors.push((parts::absmax(name), vector(absmax))),
        Scales::Nested(nested) => {
            state.nested_blocksize = Some(scales::BLOCK);
            state.nested_dtype = Some(Float::F32.name().into());
            state.nested_offset = Some(nested.offset().into());
            let codes = nested.codes();
            tensors.extend([
                (parts::absmax(name), bytes(vec![codes.len()], codes.into())),
                (parts::nested_absmax(name), vector(nested.absmax())),
                (parts::nested_map(name), vector(nested.map())),
            ]);
        }
    }
    let about = parts::state(name);
    let state = serde_json::to_vec(&state).map_err(|source| Error::Json {
        what: format!("tensor {about}"),
        source,
    })?;
    tensors.push((about, bytes(vec![state.len()], state.into())));
    Ok(tensors)
}

fn of_int8<'a>(name: &str, weight: &'a Int8) -> Vec<(String, Outgoing<'a>)> {
    let codes = Outgoing {
        dtype: Dtype::I8,
        shape: weight.shape().to_vec(),
        data: Data::Codes(weight.codes()),
    };
    vec![
        (name.to_owned(), codes),
        (parts::row_absmax(name), vector(weight.absmax())),
        // Row by row.
        (parts::layout(name), bytes(Vec::new(), vec![0].into())),
    ]
}

fn bytes(shape: Vec<usize>, bytes: Cow<'_, [u8]>) -> Outgoing<'_> {
    Outgoing {
        dtype: Dtype::U8,
        shape,
        data: Data::Bytes(bytes),
    }
}

fn vector(values: &[f32]) -> Outgoing<'static> {
    floats(Float::F32, vec![values.len()], values)
}

fn floats(float: Float, shape: Vec<usize>, values: &[f32]) -> Outgoing<'static> {
    Outgoing {
        dtype: float.dtype(),
        shape,
        data: Data::Bytes(float.bytes(values).into()),
    }
}
