//! Opened bases, whose tensors are read at first use, on the CPU and directly to a GPU.

use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Dtype;
use togi_model::{Base, Config, Engine, Error, Float, Precision, Target};

use crate::load::{self, Tensors};
use crate::support;

const FLOATS: [(Float, Dtype); 3] = [
    (Float::F32, Dtype::F32),
    (Float::Fp16, Dtype::F16),
    (Float::Bf16, Dtype::BF16),
];

/// Changes the tensors of a folder's only weight file.
fn change(dir: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = load::tensors(dir);
    change(&mut tensors);
    load::write(&dir.join("model.safetensors"), &tensors);
}

/// Writes a base folder in a float type. Its linear weights cover every quantizer case: blocks of
/// zeros and of one value, a row of zeros, and scales from 1e-30 up, whose sum depends on the
/// order.
fn folder(config: &Config, dtype: Dtype) -> tempfile::TempDir {
    let dir = support::folder(config);
    change(dir.path(), |tensors| {
        for (name, (held, shape, bytes)) in tensors {
            let mut values: Vec<f32> = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect();
            if name.contains("dense_h_to_4h.weight") {
                values[64..192].fill(0.0);
                values[192..256].fill(0.3);
                let columns = shape[1];
                values[15 * columns..16 * columns].fill(0.0);
            }
            if name.contains("layers.1.mlp.dense_4h_to_h.weight") {
                for (block, values) in values.chunks_mut(64).enumerate() {
                    let factor = 10_f32.powi(-((block % 8) as i32) * 4);
                    values.iter_mut().for_each(|value| *value *= factor);
                }
            }
            *held = dtype;
            *bytes = values.iter().flat_map(|&v| to_bytes(v, dtype)).collect();
        }
    });
    dir
}

fn to_bytes(value: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// Wide enough for fp8 products. One matrix is both embedding and head, and is copied to a GPU in
/// several parts.
fn wide() -> Config {
    Config {
        vocab_size: 6000,
        tie_word_embeddings: true,
        hidden_size: 192,
        intermediate_size: 768,
        ..support::deep()
    }
}

/// Returns the bits of a loss and of all gradients.
fn learned(engine: &Engine) -> (u64, Vec<u32>) {
    let config = engine.config().clone();
    let lora = support::lora(&config, &Target::ALL);
    let batch = support::batch(&config, &[9, 14, 20]);
    let (loss, gradients) = support::learn(engine, &lora, &[batch], None);
    assert!(loss.sum.is_finite());
    let bits = gradients.iter().map(|gradient| gradient.to_bits());
    (loss.sum.to_bits(), bits.collect())
}

#[test]
fn an_opened_base_becomes_what_a_loaded_one_is() {
    for config in [support::deep(), wide()] {
        for (_, dtype) in FLOATS {
            let folder = folder(&config, dtype);
            for precision in Precision::ALL {
                let loaded = Base::load_as(folder.path(), precision).unwrap();
                let opened = Base::open(folder.path(), precision).unwrap();
                assert_eq!(opened.digest(), loaded.digest());
                assert_eq!(opened.precision(), precision);
                let [opened, loaded] =
                    [opened, loaded].map(|base| learned(&Engine::new(Arc::new(base)).unwrap()));
                assert_eq!(opened, loaded, "{precision:?} of {dtype:?}");
            }
        }
    }
}

#[test]
fn halves_stay_in_a_file_of_their_type() {
    let config = support::config();
    let folder = folder(&config, Dtype::BF16);
    let base = Base::load_as(folder.path(), Precision::Bf16).unwrap();
    let name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight";
    let in_file = load::tensors(folder.path())[name].2.clone();
    let togi_model::Weight::Half(halves) = base.weight(name).unwrap() else {
        panic!("not in 16 bits");
    };
    assert_eq!(halves.float(), Float::Bf16);
    assert_eq!(halves.bytes(), in_file);
}

/// Writes a folder with `value`, which is not allowed, in one tensor.
fn flawed(name: &str, value: f32) -> tempfile::TempDir {
    let folder = support::folder(&support::config());
    change(folder.path(), |tensors| {
        let (_, _, bytes) = tensors.get_mut(name).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&value.to_le_bytes());
    });
    folder
}

const WEIGHT: &str = "gpt_neox.layers.1.attention.dense.weight";
const BIAS: &str = "gpt_neox.layers.1.mlp.dense_h_to_4h.bias";

#[test]
fn an_opened_base_names_what_is_wrong_when_it_is_needed() {
    for (name, precision) in [(WEIGHT, Precision::Nf4), (BIAS, Precision::Bf16)] {
        let folder = flawed(name, f32::NAN);
        let loaded = Base::load_as(folder.path(), precision);
        assert!(matches!(loaded, Err(Error::NotFinite(n)) if n == name));
        let opened = Base::open(folder.path(), precision).unwrap();
        assert!(matches!(opened.weight(name), Err(Error::NotFinite(n)) if n == name));
        opened.weight("gpt_neox.embed_in.weight").unwrap();
        let engine = Engine::new(Arc::new(opened));
        assert!(matches!(engine, Err(Error::NotFinite(n)) if n == name));
    }
    // Errors that need no values are reported when the base is opened.
    let folder = support::folder(&support::config());
    change(folder.path(), |tensors| drop(tensors.remove(WEIGHT)));
    let opened = Base::open(folder.path(), Precision::Bf16);
    assert!(matches!(opened, Err(Error::Missing(n)) if n == WEIGHT));
}

#[test]
fn the_digest_is_that_of_the_files_as_they_are() {
    let folder = folder(&support::config(), Dtype::F16);
    let base = Base::open(folder.path(), Precision::Fp16).unwrap();
    let lines = ["config.json", "model.safetensors"].map(|name| {
        let sha256 = sha256(&std::fs::read(folder.path().join(name)).unwrap());
        format!("{sha256}  {name}\n")
    });
    assert_eq!(base.digest(), sha256(lines.concat().as_bytes()));
    // A base can be dropped before its digest is computed.
    drop(Base::open(folder.path(), Precision::Fp16).unwrap());
}

fn sha256(bytes: &[u8]) -> String {
    togi_common::Digest::of(bytes).to_string()
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use super::*;

    fn engine(base: Base, float: Float) -> togi_model::Result<Engine> {
        let ordinal = 0;
        Engine::on(Arc::new(base), togi_model::Device::Cuda { ordinal, float })
    }

    /// The GPU's quantizers give the CPU's codes and scales, bit for bit.
    #[test]
    fn an_opened_base_becomes_what_a_loaded_one_is() {
        if !support::has_card() {
            return;
        }
        for config in [support::deep(), wide()] {
            for (float, dtype) in FLOATS {
                let folder = folder(&config, dtype);
                for precision in Precision::ALL {
                    let loaded = Base::load_as(folder.path(), precision).unwrap();
                    let opened = Base::open(folder.path(), precision).unwrap();
                    let [opened, loaded] =
                        [opened, loaded].map(|base| learned(&engine(base, float).unwrap()));
                    assert_eq!(opened, loaded, "{precision:?} of {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn a_quantized_folder_is_taken_as_it_is() {
        if !support::has_card() {
            return;
        }
        for precision in [Precision::Nf4, Precision::Int8] {
            let folder = folder(&wide(), Dtype::F16);
            let into = tempfile::tempdir().unwrap();
            let dir = into.path().join("base");
            togi_model::base::write_quantized(folder.path(), &dir, precision).unwrap();
            let [packed, made] = [&dir, folder.path()].map(|dir| {
                let base = Base::open(dir, precision).unwrap();
                learned(&engine(base, Float::Bf16).unwrap())
            });
            assert_eq!(packed, made, "{precision:?}");
        }
    }

    #[test]
    fn an_opened_base_names_what_is_wrong_when_it_is_loaded() {
        if !support::has_card() {
            return;
        }
        for (name, precision) in [(WEIGHT, Precision::Nf4), (BIAS, Precision::Bf16)] {
            let base = Base::open(flawed(name, f32::NAN).path(), precision).unwrap();
            let made = engine(base, Float::Bf16);
            assert!(matches!(made, Err(Error::NotFinite(n)) if n == name));
        }
        for precision in [Precision::Fp16, Precision::Int8] {
            let base = Base::open(flawed(WEIGHT, 70_000.0).path(), precision).unwrap();
            let text = engine(base, Float::F32).err().unwrap().to_string();
            assert!(text.contains(WEIGHT) && text.contains("fp16"), "{text}");
        }
    }
}
