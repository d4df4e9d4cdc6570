//! Unpacks gzip and zstd, recognised by their first bytes, up to a limit of unpacked bytes.

use std::io::{self, BufReader, Cursor, Read};

use crate::error::Error;

/// The largest zstd window, as a power of two: 32 MiB. Every level below `--ultra` stays under it.
const ZSTD_WINDOW_LOG: u32 = 25;

pub(super) struct Unpacked {
    pub(super) reader: Box<dyn Read + Send>,
    pub(super) was_packed: bool,
}

/// Returns the unpacked stream; a stream that is not packed stays as it is.
pub(super) fn unpack(mut reader: Box<dyn Read + Send>, max_bytes: u64) -> Result<Unpacked, Error> {
    let mut magic = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut magic)?;
    let gzip = magic.starts_with(b"\x1f\x8b");
    let zstd = magic == b"\x28\xb5\x2f\xfd";
    let whole = Cursor::new(magic).chain(reader);
    let reader: Box<dyn Read + Send> = if gzip {
        let packed = BufReader::with_capacity(64 << 10, whole);
        Box::new(flate2::bufread::MultiGzDecoder::new(packed))
    } else if zstd {
        let mut decoder = zstd::Decoder::new(whole).map_err(Error::Scratch)?;
        decoder
            .window_log_max(ZSTD_WINDOW_LOG)
            .map_err(Error::Scratch)?;
        Box::new(decoder)
    } else {
        Box::new(whole)
    };
    let reader = Box::new(Limited {
        reader,
        left: max_bytes,
        limit: max_bytes,
    });
    Ok(Unpacked {
        reader,
        was_packed: gzip || zstd,
    })
}

/// Fails at the limit instead of ending, because a source must be read completely.
struct Limited {
    reader: Box<dyn Read + Send>,
    left: u64,
    limit: u64,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::other(Error::SourceTooLarge {
                    limit: self.limit,
                }));
            }
        }
        Ok(read)
    }
}
