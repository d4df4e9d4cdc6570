//! Limits of a Parquet file, checked before it is decoded, because a decoder allocates the sizes
//! that a header claims.
//!
//! The footer's length is checked before the footer is parsed. The position and size of each column
//! chunk and each page header in it (Thrift's compact protocol) are checked before any page is
//! decompressed.

use bytes::Bytes;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::ChunkReader;

use crate::error::{Error, Result};

/// The largest sizes that a Parquet file may claim. The default fits our shards and ordinary data
/// sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of the footer.
    pub footer_bytes: u64,
    /// Leaf columns.
    pub columns: usize,
    /// Row groups.
    pub row_groups: usize,
    /// Rows of a row group.
    pub group_rows: u64,
    /// Bytes of a column in a row group, compressed or not.
    pub chunk_bytes: u64,
    /// Bytes of a page, compressed or not.
    pub page_bytes: u64,
    /// Bytes of a page's header.
    pub header_bytes: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            footer_bytes: 16 << 20,
            columns: 1024,
            row_groups: 1 << 16,
            group_rows: 1 << 21,
            chunk_bytes: 512 << 20,
            page_bytes: 64 << 20,
            header_bytes: 64 << 10,
        }
    }
}

/// The first and the last bytes of a file.
const MAGIC: &[u8; 4] = b"PAR1";

/// Returns a file's footer if the file and all its pages are within the caps.
pub fn check<R: ChunkReader>(source: &R, caps: &Caps) -> Result<ParquetMetaData> {
    let length = source.len();
    let Some(tail_at) = length.checked_sub(8).filter(|at| *at >= 4) else {
        return Err(Error::shard("it is too short"));
    };
    let tail = source.get_bytes(tail_at, 8)?;
    let Some((size, magic)) = tail.split_first_chunk::<4>() else {
        return Err(Error::shard("it is too short"));
    };
    if magic != MAGIC || source.get_bytes(0, 4)?[..] != MAGIC[..] {
        return Err(Error::shard("it is not a plain Parquet file"));
    }
    let size = u64::from(u32::from_le_bytes(*size));
    if size > caps.footer_bytes || size > tail_at - 4 {
        return Err(Error::shard(format!("its footer claims {size} bytes")));
    }
    let footer = source.get_bytes(tail_at - size, size as usize)?;
    let footer = ParquetMetaDataReader::decode_metadata(&footer)?;
    check_footer(&footer, caps)?;
    for group in footer.row_groups() {
        for column in group.columns() {
            // Not `ColumnChunkMetaData::byte_range`: it asserts.
            let start = column.dictionary_page_offset().filter(|at| *at > 0);
            let start = start.unwrap_or(column.data_page_offset());
            let (start, size) = (
                u64::try_from(start),
                u64::try_from(column.compressed_size()),
            );
            let (Ok(start), Ok(size)) = (start, size) else {
                return Err(Error::shard("a column chunk is at a negative place"));
            };
            if start < 4 || start.checked_add(size).is_none_or(|end| end > tail_at) {
                return Err(Error::shard("a column chunk is outside the file"));
            }
            let uncompressed = u64::try_from(column.uncompressed_size()).unwrap_or(u64::MAX);
            if size > caps.chunk_bytes || uncompressed > caps.chunk_bytes {
                return Err(Error::shard(format!(
                    "a column chunk claims {uncompressed} bytes"
                )));
            }
            check_pages(source, start, size, caps)?;
        }
    }
    Ok(footer)
}

fn check_footer(footer: &ParquetMetaData, caps: &Caps) -> Result<()> {
    let columns = footer.file_metadata().schema_descr().num_columns();
    if columns > caps.columns {
        return Err(Error::shard(format!("it claims {columns} columns")));
    }
    if footer.num_row_groups() > caps.row_groups {
        return Err(Error::shard(format!(
            "it claims {} row groups",
            footer.num_row_groups()
        )));
    }
    let mut total = 0_i64;
    for group in footer.row_groups() {
        let rows = group.num_rows();
        if rows < 0 || rows.unsigned_abs() > caps.group_rows {
            return Err(Error::shard(format!("a row group claims {rows} rows")));
        }
        if group.columns().len() != columns {
            return Err(Error::shard("a row group has not all columns"));
        }
        total += rows; // At most 2^37 with the default caps.
    }
    if total != footer.file_metadata().num_rows() {
        return Err(Error::shard(
            "its row groups have not the rows that it claims",
        ));
    }
    Ok(())
}

/// Walks a column chunk's page headers.
fn check_pages<R: ChunkReader>(source: &R, start: u64, size: u64, caps: &Caps) -> Result<()> {
    let end = start + size;
    let mut at = start;
    while at < end {
        let window = caps.header_bytes.min((end - at) as usize);
        // Most headers are far shorter than the cap.
        let bytes = source.get_bytes(at, window.min(256))?;
        let header = match PageHeader::parse(&bytes) {
            Some(header) => Some(header),
            None => PageHeader::parse(&source.get_bytes(at, window)?),
        };
        let Some(header) = header else {
            return Err(Error::shard(
                "a page header is cut off, too long or malformed",
            ));
        };
        let sizes = [header.uncompressed, header.compressed].map(u64::try_from);
        let [Ok(uncompressed), Ok(compressed)] = sizes else {
            return Err(Error::shard("a page claims a negative size"));
        };
        if uncompressed > caps.page_bytes || compressed > caps.page_bytes {
            return Err(Error::shard(format!("a page claims {uncompressed} bytes")));
        }
        at += header.length as u64 + compressed;
    }
    if at != end {
        return Err(Error::shard("a page is longer than its column chunk"));
    }
    Ok(())
}

/// The fields of Parquet's `PageHeader` that are checked.
#[derive(Debug, PartialEq, Eq)]
struct PageHeader {
    uncompressed: i32,
    compressed: i32,
    /// The header's own bytes.
    length: usize,
}

impl PageHeader {
    fn parse(bytes: &Bytes) -> Option<Self> {
        let mut input = Thrift { bytes, at: 0 };
        let (mut uncompressed, mut compressed) = (None, None);
        let mut field = 0;
        while let Some(kind) = input.field(&mut field)? {
            match (field, kind) {
                (2, Thrift::I32) => uncompressed = Some(input.i32()?),
                (3, Thrift::I32) => compressed = Some(input.i32()?),
                _ => input.skip(kind, 0)?,
            }
        }
        Some(Self {
            uncompressed: uncompressed?,
            compressed: compressed?,
            length: input.at,
        })
    }
}

/// A reader of Thrift's compact protocol that can skip any value. Its functions return `None` if
/// the bytes end or are malformed.
struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Thrift<'_> {
    const I32: u8 = 5;
    /// Page headers are nested three deep.
    const DEEPEST: usize = 8;

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    fn i32(&mut self) -> Option<i32> {
        i32::try_from(self.zigzag()?).ok()
    }

    /// Moves to the next field of a struct and returns its kind, or `Some(None)` at the struct's
    /// end.
    fn field(&mut self, id: &mut i64) -> Option<Option<u8>> {
        let head = self.byte()?;
        if head == 0 {
            return Some(None);
        }
        *id = match head >> 4 {
            0 => self.zigzag()?,
            delta => id.checked_add(i64::from(delta))?,
        };
        Some(Some(head & 0x0f))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > Self::DEEPEST {
            return None;
        }
        match kind {
            1 | 2 => {} // A boolean is in its field's head.
            3 => self.at += 1,
            4..=6 => {
                self.varint()?;
            }
            7 => self.at += 8,
            8 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.at = self.at.checked_add(length)?;
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                for _ in 0..count {
                    // A boolean in a list takes one byte.
                    let item = if matches!(head & 0x0f, 1 | 2) {
                        3
                    } else {
                        head & 0x0f
                    };
                    self.skip(item, depth + 1)?;
                    self.bytes.get(self.at.checked_sub(1)?)?;
                }
            }
            12 => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
            }
            _ => return None,
        }
        (self.at <= self.bytes.len()).then_some(())
    }
}
