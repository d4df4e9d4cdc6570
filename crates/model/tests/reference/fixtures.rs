//! Reads the fixtures of the peers' scripts, and compares with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::de::DeserializeOwned;
use togi_model::{Adapter, Base, Batch, Config, Engine, Lora, base};

/// Rows and columns, and values.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A record as the scripts write it.
#[derive(serde::Deserialize)]
pub(crate) struct Record {
    pub(crate) ids: Vec<u32>,
    pub(crate) labels: Vec<i32>,
}

pub(crate) fn path(name: &str) -> PathBuf {
    workspace().join("tests/reference/fixtures").join(name)
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &safetensors::tensor::TensorView<'_>| {
        assert_eq!(view.dtype(), Dtype::F32);
        let chunks = view.data().as_chunks::<4>().0.iter();
        chunks.map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    file.iter()
        .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(&view))))
        .collect()
}

pub(crate) fn json<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(path(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A folder as transformers wrote it.
pub(crate) fn load(folder: &Path) -> Engine {
    Engine::new(Arc::new(Base::load(folder).unwrap())).unwrap()
}

/// The shared base.
pub(crate) fn tiny() -> Engine {
    load(&path("base"))
}

/// The shared base's weights under another configuration.
pub(crate) fn variant(change: impl FnOnce(&mut Config)) -> Engine {
    let mut config = tiny().config().clone();
    change(&mut config);
    let weights = tensors(&path("base/model.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    base::write(folder.path(), &config, |name, _| weights[name].1.clone()).unwrap();
    load(folder.path())
}

/// Logits after every id, one step over a cache for each.
pub(crate) fn stepped(engine: &Engine, ids: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
    let mut cache = engine.cache();
    let step = |id: &u32| engine.decode(&mut cache, &[*id], adapter).unwrap();
    ids.iter().flat_map(step).collect()
}

/// Logits after every id, each from a full pass.
pub(crate) fn whole(engine: &Engine, ids: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
    let pass = |end: usize| {
        engine
            .decode(&mut engine.cache(), &ids[..end], adapter)
            .unwrap()
    };
    (1..=ids.len()).flat_map(pass).collect()
}

pub(crate) fn with_lora(engine: &Engine, ids: &[u32], lora: &Lora) -> Vec<f32> {
    whole(engine, ids, Some(&engine.adapter(lora).unwrap()))
}

/// Records as one batch, in slots from 0.
pub(crate) fn batch(records: &[Record]) -> Batch {
    let mut batch = Batch::new();
    for (slot, record) in (0..).zip(records) {
        batch.push(&record.ids, &record.labels, slot);
    }
    batch
}

pub(crate) fn largest_difference(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(!want.is_empty());
    let differences = got
        .iter()
        .zip(want)
        .map(|(got, want)| (f64::from(*got) - f64::from(*want)).abs());
    differences.fold(0.0, |largest, difference| {
        // Not `max`, which would ignore NaN.
        if difference <= largest {
            largest
        } else {
            difference
        }
    })
}

/// Asserts that no value differs by more than `tolerance`.
pub(crate) fn assert_near(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    let difference = largest_difference(got, want);
    eprintln!("{what}: the largest difference is {difference:e}");
    assert!(
        difference <= tolerance,
        "{what}: the largest difference is {difference:e}, over {tolerance:e}"
    );
}

/// Asserts that the difference is at most `tolerance` of the expected length.
pub(crate) fn assert_relative(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    let largest = largest_difference(got, want);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = got.iter().zip(want);
    let difference = norm(&mut pairs.map(|(got, want)| f64::from(got - want)));
    let share = difference / norm(&mut want.iter().map(|&want| f64::from(want)));
    eprintln!("{what}: off by {share:e} of its length");
    assert!(
        share <= tolerance,
        "{what}: off by {share:e} of its length, over {tolerance:e}; the largest difference is {largest:e}"
    );
}
