//! Writes a safetensors file tensor by tensor: the shapes first, then the values as they come, so
//! that no file has to fit into memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use crate::error::{Error, Result};

/// The types of values that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// 64-bit integers.
    I64,
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Brain floats.
    Bf16,
    /// Booleans, a byte each.
    Bool,
}

impl Type {
    /// Bytes of a value.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Bool => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::I64 => "I64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Bool => "BOOL",
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Type of its values.
    pub kind: Type,
    /// Its shape; empty for a single value.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Values in the tensor.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the tensor.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.count() * self.kind.size()
    }
}

/// A file that is being written. Tensors must come in the order of the entries. Wider types should
/// come first, so that every tensor is aligned.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    entries: std::vec::IntoIter<Entry>,
}

impl Writer {
    /// Creates the file and writes its header.
    ///
    /// # Errors
    /// Two entries have one name; the file cannot be written.
    pub fn create(path: &Path, entries: Vec<Entry>) -> Result<Self> {
        let header = header(&entries)?;
        let file = File::create(path).map_err(|e| Error::file(path, e))?;
        let mut writer = Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            entries: entries.into_iter(),
        };
        writer.append(&(header.len() as u64).to_le_bytes())?;
        writer.append(&header)?;
        Ok(writer)
    }

    /// Writes the next tensor's bytes, little-endian, row by row.
    ///
    /// # Errors
    /// There is no further entry, or it has another size; the file cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let expected = self.entries.next().map_or(0, |entry| entry.bytes());
        if bytes.len() != expected {
            let reason = format!("{} bytes for a tensor of {expected}", bytes.len());
            return Err(Error::format(self.path.display().to_string(), reason));
        }
        self.append(bytes)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// Tensors are missing; the file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        if let Some(entry) = self.entries.next() {
            return Err(Error::Missing(entry.name));
        }
        self.file
            .flush()
            .map_err(|error| Error::file(&self.path, error))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| Error::file(&self.path, error))
    }
}

fn header(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for entry in entries {
        let start = end;
        end += entry.bytes();
        let described = json!({
            "dtype": entry.kind.name(),
            "shape": entry.shape,
            "data_offsets": [start, end],
        });
        if map.insert(entry.name.clone(), described).is_some() {
            return Err(Error::Duplicate(entry.name.clone()));
        }
    }
    let mut bytes = serde_json::to_vec(&map).map_err(|source| Error::Json {
        what: "the header of a safetensors file".into(),
        source,
    })?;
    // The data begins at a multiple of eight.
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn entry(name: &str, kind: Type, shape: &[usize]) -> Entry {
        Entry {
            name: name.into(),
            kind,
            shape: shape.to_vec(),
        }
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        (folder, path)
    }

    #[test]
    fn what_is_written_is_read_by_the_usual_reader() {
        let (_folder, path) = file();
        let entries = vec![
            entry("z", Type::I64, &[3]),
            entry("empty", Type::F32, &[0, 4]),
            entry("a", Type::F16, &[1, 2]),
            entry("b", Type::Bool, &[]),
        ];
        let mut writer = Writer::create(&path, entries).unwrap();
        for bytes in [&[7; 24][..], &[], &[1, 2, 3, 4], &[1]] {
            writer.write(bytes).unwrap();
        }
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), 4);
        assert_eq!(read.tensor("z").unwrap().data(), [7; 24]);
        assert_eq!(read.tensor("empty").unwrap().shape(), [0, 4]);
        let half = read.tensor("a").unwrap();
        assert_eq!(
            (half.shape(), half.data()),
            (&[1, 2][..], &[1, 2, 3, 4][..])
        );
        assert!(read.tensor("b").unwrap().shape().is_empty());
    }

    #[test]
    fn wrong_sizes_and_counts_are_refused() {
        let (_folder, path) = file();
        let twice = vec![entry("a", Type::F32, &[1]), entry("a", Type::F32, &[2])];
        assert!(matches!(
            Writer::create(&path, twice).err(),
            Some(Error::Duplicate(name)) if name == "a"
        ));
        let mut writer = Writer::create(&path, vec![entry("a", Type::F32, &[2])]).unwrap();
        assert!(writer.write(&[0; 4]).is_err(), "too short");
        let mut writer = Writer::create(&path, vec![entry("a", Type::F32, &[1])]).unwrap();
        writer.write(&[0; 4]).unwrap();
        assert!(writer.write(&[0; 4]).is_err(), "one too many");
        let writer = Writer::create(&path, vec![entry("a", Type::F32, &[1])]).unwrap();
        assert!(matches!(writer.finish(), Err(Error::Missing(name)) if name == "a"));
    }
}
