//! Cuts a source's bytes into chunks of records: detects the format, unpacks it, and returns pieces
//! of bounded size. The meaning of records is not known here; a record that is not JSON is returned
//! like any other.

mod array;
mod chunk;
mod format;
mod lines;
mod other_forms;
mod outline;
mod parquet;
mod separated;
mod table;
mod tabular;
mod unpack;

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use togi_common::file;
use togi_tokens::form::Form;
use togi_tokens::manifest::Split;
use togi_tokens::shape::{self, Shape};

use self::other_forms::Separators;
use self::unpack::unpack;
use crate::error::Error;

pub use chunk::{Chunk, Chunks, Item, MAX_RECORD_BYTES, Text, TextRecord};
pub use format::{Format, WORDS, Word};
pub use table::{Separated, Table};

/// Bytes that the detection of a format reads.
const PREFIX_BYTES: usize = 4 << 10;

/// One file to read records from.
pub struct Input {
    /// Its bytes from the start.
    pub reader: Box<dyn Read + Send>,
    /// The same bytes as a local file, if they are one: a Parquet table is then read in place.
    pub file: Option<File>,
    /// The side of its records. Of those to train on, a request may keep a share for validation.
    pub split: Split,
}

/// How to open an input.
pub struct Options<'a> {
    /// The format; detected from the bytes if not set.
    pub format: Option<Format>,
    /// The shape of the records; detected from the first record that has one, or from the columns
    /// of a table, if not set.
    pub shape: Option<&'a Shape>,
    /// Most bytes of a file after unpacking.
    pub max_bytes: u64,
    /// The folder in which a packed Parquet table is unpacked.
    pub scratch: &'a Path,
}

/// Some records of a file, and how they are read.
pub struct Shaped {
    /// The records.
    pub chunk: Chunk,
    /// Their shape.
    pub shape: Arc<Shape>,
    /// How the file holds them.
    pub format: Format,
}

/// The records of an open input.
pub struct Records {
    chunks: Box<dyn Chunks + Send>,
    format: Format,
    /// Known from the start, or from the first record that has a form.
    shape: Option<Arc<Shape>>,
    /// The shape of the records before.
    default: Arc<Shape>,
    hint: Option<String>,
}

impl Records {
    /// Returns the next records, or nothing at the end.
    ///
    /// # Errors
    /// When the source cannot be read or is malformed.
    pub fn next_chunk(&mut self) -> Result<Option<Shaped>, Error> {
        let Some(chunk) = self.chunks.next_chunk()? else {
            return Ok(None);
        };
        if self.shape.is_none()
            && let Chunk::Text(text) = &chunk
        {
            let form = text
                .records()
                .find_map(|record| shape::detect(record.bytes));
            self.shape = form.map(|form| Arc::new(Shape::detected(form)));
        }
        Ok(Some(Shaped {
            chunk,
            shape: self.shape.as_ref().unwrap_or(&self.default).clone(),
            format: self.format,
        }))
    }

    /// Returns how the file holds its records, and their form once it is known.
    #[must_use]
    pub fn read_as(&self) -> Option<(Form, Format)> {
        let shape = self.shape.as_ref()?;
        Some((shape.form(), self.format))
    }

    /// Returns what to do if no record of the file can be used.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// Opens an input. gzip and zstd are recognised by their first bytes in every format.
pub fn open(input: Input, options: &Options<'_>) -> Result<Records, Error> {
    let mut unpacked = unpack(input.reader, options.max_bytes)?;
    let mut prefix = Vec::with_capacity(PREFIX_BYTES);
    unpacked
        .reader
        .by_ref()
        .take(PREFIX_BYTES as u64)
        .read_to_end(&mut prefix)?;
    other_forms::refuse(&prefix, options.format)?;
    let (format, separator) = match options.format {
        Some(format) => (format, other_forms::separator(&prefix, format)),
        None => detect(&prefix),
    };
    let mut said = options.shape.cloned();
    let text = if prefix.starts_with(b"\xef\xbb\xbf") {
        prefix.split_off(3)
    } else {
        prefix
    };
    let hint = outline::hint(&text);
    let whole = std::io::Cursor::new(text).chain(unpacked.reader);
    let chunks: Box<dyn Chunks + Send> = match format {
        Format::Json => Box::new(array::Array::new(buffered(whole))),
        Format::JsonLines => Box::new(lines::Lines::new(buffered(whole))),
        Format::Csv | Format::Tsv => {
            let (rows, shape) = separated::Rows::open(buffered(whole), separator, options.shape)?;
            said = Some(shape);
            Box::new(rows)
        }
        Format::Parquet => {
            let file = match input.file {
                Some(file) if !unpacked.was_packed => file,
                _ => spill(whole, options.scratch)?,
            };
            let (rows, shape) = parquet::Rows::open(file, options.shape)?;
            said = Some(shape);
            Box::new(rows)
        }
    };
    Ok(Records {
        chunks,
        format,
        shape: said.map(Arc::new),
        default: Arc::new(Shape::detected(Form::Alpaca)),
        hint,
    })
}

/// Returns the format, and the separator of a table with separated cells.
fn detect(prefix: &[u8]) -> (Format, u8) {
    let text = prefix.strip_prefix(b"\xef\xbb\xbf").unwrap_or(prefix);
    if prefix.starts_with(b"PAR1") {
        (Format::Parquet, 0)
    } else if let Some(Separators { format, separator }) = other_forms::separated(text) {
        (format, separator)
    } else if text.trim_ascii_start().first() == Some(&b'[') {
        (Format::Json, 0)
    } else {
        (Format::JsonLines, 0)
    }
}

/// Opens a local file.
///
/// # Errors
/// [`Error::Malformed`] if it is no regular file; [`Error::Scratch`] if the system fails.
pub fn open_file(path: &Path) -> Result<File, Error> {
    file::open(path).map_err(|error| match error.kind() {
        ErrorKind::InvalidInput => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Error::malformed(format!("{name} {error}"))
        }
        _ => Error::Scratch(error),
    })
}

fn buffered(reader: impl Read + Send + 'static) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::with_capacity(64 << 10, reader))
}

/// Copies a stream to an unnamed local file, because a Parquet table is read from its end.
fn spill(mut reader: impl Read, scratch: &Path) -> Result<File, Error> {
    let mut file = tempfile::tempfile_in(scratch).map_err(Error::Scratch)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok(file);
        }
        std::io::Write::write_all(&mut file, &buffer[..read]).map_err(Error::Scratch)?;
    }
}

#[cfg(test)]
mod tests {
    use super::chunk::{CHUNK_BYTES, KEPT_OF_OVER_LONG};
    use super::*;

    fn read(bytes: &[u8], format: Option<Format>) -> Result<Vec<(u64, String, bool)>, Error> {
        let scratch = tempfile::tempdir().unwrap();
        let options = Options {
            format,
            shape: None,
            max_bytes: 64 << 20,
            scratch: scratch.path(),
        };
        let reader = Box::new(std::io::Cursor::new(bytes.to_vec()));
        let input = Input {
            reader,
            file: None,
            split: Split::Train,
        };
        let mut chunks = open(input, &options)?;
        let mut found = Vec::new();
        while let Some(Shaped { chunk, .. }) = chunks.next_chunk()? {
            let Chunk::Text(text) = chunk else {
                panic!("not text")
            };
            assert!(text.bytes.len() <= CHUNK_BYTES + MAX_RECORD_BYTES + 1);
            assert!(text.bytes.capacity() <= 4 * (CHUNK_BYTES + MAX_RECORD_BYTES));
            for record in text.records() {
                let text = String::from_utf8_lossy(record.bytes).into_owned();
                found.push((record.number, text, record.over_long));
            }
        }
        Ok(found)
    }

    fn texts(bytes: &[u8]) -> Vec<String> {
        read(bytes, None)
            .unwrap()
            .into_iter()
            .map(|(_, text, _)| text)
            .collect()
    }

    #[test]
    fn an_array_is_cut_at_its_own_commas_alone() {
        let text = br#" [ {"a": "x,]}\"[", "b": [1, {"c": 2}]} , 7,"y\\" , {"d":[]} ] "#;
        let wanted = [
            r#"{"a": "x,]}\"[", "b": [1, {"c": 2}]}"#,
            "7",
            r#""y\\""#,
            r#"{"d":[]}"#,
        ];
        assert_eq!(texts(text), wanted);
    }

    #[test]
    fn an_empty_array_has_no_records_and_a_hole_is_one() {
        assert!(texts(b"[ \n ]").is_empty());
        assert_eq!(texts(b"[1,,2]"), ["1", "", "2"]);
        assert_eq!(texts(b"[1,]"), ["1", ""]);
    }

    #[test]
    fn an_array_that_does_not_end_or_goes_on_is_refused() {
        for bad in [&b"[{\"a\":1}, {\"b\""[..], b"[1", b"[", b"[1] 2", b"[\"\\"] {
            assert!(
                matches!(read(bad, None), Err(Error::Malformed { .. })),
                "{bad:?}"
            );
        }
        assert!(matches!(
            read(b"{}", Some(Format::Json)),
            Err(Error::Malformed { .. })
        ));
    }

    #[test]
    fn lines_keep_their_numbers_over_blank_ones() {
        let many = "\n".repeat(1 << 20);
        let blank = format!("{many} \t\r\n{many}");
        let found = read(
            format!("{blank}[]\n{blank}").as_bytes(),
            Some(Format::JsonLines),
        );
        assert_eq!(found.unwrap(), [((1 << 21) + 2, "[]".into(), false)]);
        let found = read(b"\xef\xbb\xbf{\"a\":1}\r\n\n  \n  {\"b\":2}", None).unwrap();
        assert_eq!(
            found,
            [
                (1, "{\"a\":1}".into(), false),
                (4, "{\"b\":2}".into(), false)
            ]
        );
    }

    #[test]
    fn a_record_of_any_length_takes_bounded_memory() {
        let long = "x".repeat(5 * MAX_RECORD_BYTES);
        let lines = read(format!("{{}}\n\"{long}\"\n[]\n").as_bytes(), None).unwrap();
        let array = read(format!("[{{}},\"{long}\",[]]").as_bytes(), None).unwrap();
        for (found, numbers) in [(lines, [1, 2, 3]), (array, [1, 2, 3])] {
            assert_eq!(found.iter().map(|r| r.0).collect::<Vec<_>>(), numbers);
            assert_eq!(
                found.iter().map(|r| r.2).collect::<Vec<_>>(),
                [false, true, false]
            );
            assert!(found[1].1.len() <= KEPT_OF_OVER_LONG);
            assert_eq!(found[2].1, "[]");
        }
    }

    #[test]
    fn packed_text_is_recognised_and_a_broken_one_refused() {
        let plain = b"[{\"a\":1},{\"a\":2}]";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&plain[..], 3).unwrap();
        for packed in [&gzip, &zstd] {
            assert_eq!(texts(packed), ["{\"a\":1}", "{\"a\":2}"]);
            let cut = read(&packed[..packed.len() - 6], None);
            assert!(
                matches!(cut, Err(Error::Malformed { .. })),
                "{:?}",
                cut.err()
            );
        }
    }

    #[test]
    fn a_source_that_unpacks_to_more_than_the_limit_is_refused() {
        let bomb = zstd::encode_all(&vec![b' '; 65 << 20][..], 3).unwrap();
        assert!(bomb.len() < 64 << 10);
        assert!(matches!(
            read(&bomb, None),
            Err(Error::SourceTooLarge { .. })
        ));
    }
}
