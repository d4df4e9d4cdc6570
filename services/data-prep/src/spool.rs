//! Rows on the local disk, between tokenizing and shards. A shard names the digest of its data set,
//! which is known only after the last record, and the rows may not fit into memory until then.
//!
//! A row is its fields in this order, little-endian: sample id (u32 length, bytes), category
//! (likewise), number of ids (u32), ids (u32 each), labels (i32 each). The files are deleted with
//! the job.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use togi_tokens::Row;

use crate::error::{Error, Result};

/// Rows as bytes; a tokenizing thread makes them.
#[derive(Default)]
pub(crate) struct Packed {
    bytes: Vec<u8>,
    /// The end of each row in the bytes.
    ends: Vec<usize>,
    pub(crate) tokens: u64,
}

impl Packed {
    pub(crate) fn push(&mut self, row: &Row) {
        self.text(&row.sample_id);
        self.text(&row.category);
        self.length(row.input_ids.len());
        self.bytes
            .extend(row.input_ids.iter().flat_map(|id| id.to_le_bytes()));
        self.bytes
            .extend(row.labels.iter().flat_map(|label| label.to_le_bytes()));
        self.ends.push(self.bytes.len());
        self.tokens += row.input_ids.len() as u64;
    }

    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn length(&mut self, length: usize) {
        let length = u32::try_from(length).expect("a record has at most a mebibyte");
        self.bytes.extend_from_slice(&length.to_le_bytes());
    }
}

/// Writes rows into a file, and notes the start of each shard's rows.
pub(crate) struct Writer {
    file: BufWriter<File>,
    rows_per_shard: u64,
    starts: Vec<u64>,
    bytes: u64,
    rows: u64,
}

impl Writer {
    pub(crate) fn create(scratch: &Path, rows_per_shard: u32) -> Result<Self> {
        let file = tempfile::tempfile_in(scratch).map_err(Error::Scratch)?;
        let file = BufWriter::with_capacity(256 << 10, file);
        let rows_per_shard = u64::from(rows_per_shard.max(1));
        Ok(Self {
            file,
            rows_per_shard,
            starts: Vec::new(),
            bytes: 0,
            rows: 0,
        })
    }

    pub(crate) fn append(&mut self, packed: &Packed) -> Result<()> {
        self.file.write_all(&packed.bytes).map_err(Error::Scratch)?;
        let mut start = 0;
        for &end in &packed.ends {
            if self.rows.is_multiple_of(self.rows_per_shard) {
                self.starts.push(self.bytes + start as u64);
            }
            self.rows += 1;
            start = end;
        }
        self.bytes += packed.bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Spool> {
        let Self {
            file,
            rows_per_shard,
            starts,
            rows,
            ..
        } = self;
        let file = file
            .into_inner()
            .map_err(|e| Error::Scratch(e.into_error()))?;
        Ok(Spool {
            file,
            rows_per_shard,
            starts,
            rows,
        })
    }
}

/// Rows that are not shards yet.
#[derive(Debug)]
pub struct Spool {
    file: File,
    rows_per_shard: u64,
    starts: Vec<u64>,
    /// The number of rows.
    pub rows: u64,
}

impl Spool {
    /// Returns the number of shards that the rows fill.
    pub fn shards(&self) -> usize {
        self.starts.len()
    }

    /// Returns all rows in their order. A failed read of the local disk is an item.
    pub fn read(&self) -> impl Iterator<Item = Result<Row>> + '_ {
        (0..self.shards()).flat_map(|shard| self.shard(shard))
    }

    /// Returns a shard's rows in their order. Several threads may read at the same time.
    pub(crate) fn shard(&self, shard: usize) -> impl Iterator<Item = Result<Row>> + '_ {
        let before = self.rows_per_shard * shard as u64;
        let rows = self.rows_per_shard.min(self.rows.saturating_sub(before));
        let from = At {
            file: &self.file,
            at: self.starts.get(shard).copied().unwrap_or_default(),
        };
        let file = BufReader::with_capacity(256 << 10, from);
        let mut reader = Reader {
            file,
            scratch: Vec::new(),
        };
        (0..rows).map(move |_| reader.row())
    }
}

/// Reads a file from an offset, without the file's shared position.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

struct Reader<'a> {
    file: BufReader<At<'a>>,
    scratch: Vec<u8>,
}

impl Reader<'_> {
    fn row(&mut self) -> Result<Row> {
        let sample_id = self.text()?;
        let category = self.text()?;
        let count = self.length()?;
        let input_ids = self.words(count)?.map(u32::from_le_bytes).collect();
        let labels = self.words(count)?.map(i32::from_le_bytes).collect();
        Ok(Row {
            sample_id,
            input_ids,
            labels,
            category,
        })
    }

    fn length(&mut self) -> Result<usize> {
        let mut bytes = [0; 4];
        self.file.read_exact(&mut bytes).map_err(Error::Scratch)?;
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    fn text(&mut self) -> Result<String> {
        let mut bytes = vec![0; self.length()?];
        self.file.read_exact(&mut bytes).map_err(Error::Scratch)?;
        String::from_utf8(bytes).map_err(|e| Error::Scratch(std::io::Error::other(e)))
    }

    fn words(&mut self, count: usize) -> Result<impl Iterator<Item = [u8; 4]> + '_> {
        self.scratch.resize(count * 4, 0);
        self.file
            .read_exact(&mut self.scratch)
            .map_err(Error::Scratch)?;
        Ok(self
            .scratch
            .chunks_exact(4)
            .map(|word| [word[0], word[1], word[2], word[3]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u32) -> Row {
        Row {
            sample_id: format!("行-{n}"),
            input_ids: (0..n).collect(),
            labels: (0..n.cast_signed())
                .map(|id| if id < 3 { -100 } else { id })
                .collect(),
            category: if n.is_multiple_of(2) {
                String::new()
            } else {
                "qa".into()
            },
        }
    }

    #[test]
    fn shards_come_back_as_their_rows_went() {
        let scratch = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(scratch.path(), 30).unwrap();
        for batch in 0..4 {
            let mut packed = Packed::default();
            (0..25).for_each(|n| packed.push(&row(batch * 25 + n)));
            writer.append(&packed).unwrap();
        }
        let spool = writer.finish().unwrap();
        assert_eq!((spool.rows, spool.shards()), (100, 4));
        let all: Vec<Row> = spool.read().map(Result::unwrap).collect();
        assert_eq!(all, (0..100).map(row).collect::<Vec<_>>());
        for shard in [3, 0, 2, 1] {
            let found: Vec<Row> = spool.shard(shard).map(Result::unwrap).collect();
            let first = u32::try_from(shard).unwrap() * 30;
            assert_eq!(
                found,
                (first..100.min(first + 30)).map(row).collect::<Vec<_>>()
            );
        }
        assert_eq!(
            Writer::create(scratch.path(), 30)
                .unwrap()
                .finish()
                .unwrap()
                .shards(),
            0
        );
    }
}
