//! Recognises tables with separated cells, and files that hold their records in a form that is not
//! read, by their first bytes; says which form it is and what to do.

use super::format::Format;
use crate::error::Error;

/// First bytes, the form that has them, and the way to records that are read.
const MAGIC: [(&[u8], &str, &str); 18] = [
    (b"PK\x03\x04", "a zip archive (or a workbook)", UNPACK),
    (b"PK\x05\x06", "an empty zip archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a rar archive", UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", PACK_AGAIN),
    (b"BZh", "packed with bzip2", PACK_AGAIN),
    (b"\x04\x22\x4d\x18", "packed with lz4", PACK_AGAIN),
    (b"\x1f\x8b", "packed twice", "unpack it once"),
    (b"\x28\xb5\x2f\xfd", "packed twice", "unpack it once"),
    (b"ARROW1", "an Arrow file", TO_PARQUET),
    (b"\xff\xff\xff\xff", "an Arrow stream", TO_PARQUET),
    (b"ORC", "an ORC table", TO_PARQUET),
    (b"Obj\x01", "an Avro file", TO_PARQUET),
    (b"SQLite format 3\0", "an SQLite database", TO_PARQUET),
    (b"\x80\x04", "a Python pickle", TO_PARQUET),
    (b"%PDF", "a PDF", "write its records as JSON Lines"),
    (b"\x89HDF", "an HDF5 file", TO_PARQUET),
    (
        b"version https://git-lfs.github.com/spec/",
        "the pointer of a file in Git LFS",
        "bring the file itself with `git lfs pull`",
    ),
];
const UNPACK: &str = "unpack it and give the file with the records";
const PACK_AGAIN: &str = "unpack it, or pack it with gzip or zstd";
const TO_PARQUET: &str = "write its table as Parquet or JSON Lines";
/// The mark of a tar archive and its place.
const TAR: (usize, &[u8]) = (257, b"ustar");
/// First bytes of text that is not UTF-8. UTF-32 comes first, because it begins as UTF-16 does.
const MARKS: [(&[u8], &str); 4] = [
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
];
const PARQUET: &[u8] = b"PAR1";
/// Most characters of a column's name: a sentence with commas is no header.
const NAME_CHARACTERS: usize = 40;

/// Refuses a file in a form that is not read. `prefix` are its first bytes once unpacked, and
/// `format` is the form that the request names.
///
/// # Errors
/// [`Error::Malformed`] with the form and what to do.
pub(super) fn refuse(prefix: &[u8], format: Option<Format>) -> Result<(), Error> {
    let is_parquet = prefix.starts_with(PARQUET);
    match format {
        Some(Format::Parquet) if !is_parquet && !prefix.is_empty() => {
            let text = "the file is not Parquet, as the format says; leave the format out to have \
                        it detected";
            return Err(Error::malformed(text));
        }
        Some(format) if is_parquet && format != Format::Parquet => {
            let text = format!(
                "the file is Parquet and not {}; leave the format out to have it detected",
                format.title()
            );
            return Err(Error::malformed(text));
        }
        _ if is_parquet => return Ok(()),
        _ => {}
    }
    if let Some(encoding) = encoding(prefix) {
        return Err(Error::malformed(format!(
            "the file is {encoding}, and UTF-8 is read; convert it, for example with \
             `iconv -f {encoding} -t UTF-8` (in PowerShell: `Set-Content -Encoding utf8`)"
        )));
    }
    let tar = prefix
        .get(TAR.0..)
        .is_some_and(|rest| rest.starts_with(TAR.1));
    let archive = tar.then_some(("a tar archive", UNPACK));
    let by_magic = MAGIC.iter().find(|(magic, ..)| prefix.starts_with(magic));
    if let Some((form, remedy)) = archive.or(by_magic.map(|(_, form, remedy)| (*form, *remedy))) {
        return Err(Error::malformed(format!("the file is {form}; {remedy}")));
    }
    let Some(said) = format else {
        return Ok(());
    };
    let found = match said {
        Format::Csv | Format::Tsv => instead_of(prefix, said),
        _ => separated(prefix).map(|found| found.format.title()),
    };
    match found {
        None => Ok(()),
        Some(found) => Err(Error::malformed(format!(
            "the file is {found} and not {}; leave the format out to have it detected",
            said.title()
        ))),
    }
}

/// What a file is that is said to have cells, and whose header has none of their separators.
fn instead_of(prefix: &[u8], said: Format) -> Option<&'static str> {
    let text = prefix.strip_prefix(b"\xef\xbb\xbf").unwrap_or(prefix);
    if matches!(text.trim_ascii_start().first(), Some(b'{' | b'[')) {
        return Some("JSON");
    }
    let header = text.split(|&byte| byte == b'\n').next()?;
    let separators: &[u8] = if said == Format::Tsv { b"\t" } else { b",;" };
    let found = separated(prefix).filter(|found| found.format != said)?;
    let has_own = header.iter().any(|byte| separators.contains(byte));
    (!has_own).then(|| found.format.title())
}

/// The encoding of a text that is not UTF-8: by its mark, or by the zeros beside its first brace or
/// bracket, or beside its first two letters.
fn encoding(prefix: &[u8]) -> Option<&'static str> {
    let marked = MARKS.iter().find(|(mark, _)| prefix.starts_with(mark));
    if let Some((_, encoding)) = marked {
        return Some(encoding);
    }
    match prefix {
        [b'{' | b'[', 0, 0, 0, ..] | [0, 0, 0, b'{' | b'[', ..] => Some("UTF-32"),
        [b'{' | b'[', 0, ..] | [0, b'{' | b'[', ..] => Some("UTF-16"),
        [a, 0, b, 0, ..] | [0, a, 0, b, ..] if a.is_ascii_graphic() && b.is_ascii_graphic() => {
            Some("UTF-16")
        }
        _ => None,
    }
}

/// How a table separates its cells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Separators {
    pub(super) format: Format,
    pub(super) separator: u8,
}

/// Recognises a table with separated cells: neither its header nor its first row can be the
/// beginning of JSON, and its header has the names of columns.
pub(super) fn separated(text: &[u8]) -> Option<Separators> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let header = lines.next()?;
    let is_json = |line: &str| {
        line.trim_start().starts_with(['{', '['])
            || serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok()
    };
    if is_json(header) || lines.next().is_some_and(is_json) {
        return None;
    }
    let (format, separator) = [
        (Format::Tsv, b'\t'),
        (Format::Csv, b','),
        (Format::Csv, b';'),
    ]
    .into_iter()
    .find(|(_, separator)| header.contains(char::from(*separator)))?;
    let columns: Vec<&str> = header
        .split(char::from(separator))
        .map(|column| column.trim_matches(['"', '\'', ' ', '\r']))
        .collect();
    let short = |name: &&str| name.chars().count() <= NAME_CHARACTERS;
    // A column of row numbers, as pandas writes it first, has no name.
    let named = columns.iter().filter(|name| !name.is_empty()).count();
    (columns.iter().all(short) && named > 0).then_some(Separators { format, separator })
}

/// Returns the separator of a table whose format is said: of CSV, a semicolon where its header has
/// no comma.
pub(super) fn separator(prefix: &[u8], format: Format) -> u8 {
    let header = prefix
        .split(|&byte| byte == b'\n')
        .next()
        .unwrap_or_default();
    match format {
        Format::Tsv => b'\t',
        _ if header.contains(&b';') && !header.contains(&b',') => b';',
        _ => b',',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], format: Option<Format>) -> Option<String> {
        refuse(bytes, format).err().map(|error| error.to_string())
    }

    #[test]
    fn a_form_that_is_not_read_is_named() {
        let mut tar = vec![0_u8; 512];
        tar[..9].copy_from_slice(b"a.jsonl\0\0");
        tar[257..262].copy_from_slice(b"ustar");
        let utf16 =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let table: [(&[u8], &str); 11] = [
            (b"PK\x03\x04rest", "zip"),
            (&tar, "tar"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x1f\x8b\x08", "twice"),
            (b"ARROW1\0\0", "Arrow"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid",
                "git lfs pull",
            ),
            (&utf16("\u{feff}{\"instruction\": \"問い\"}"), "UTF-16"),
            (&utf16("{\"instruction\": \"問い\"}"), "UTF-16"),
            (b"\xfe\xff\0{", "UTF-16"),
            (b"\xff\xfe\0\0{\0\0\0", "UTF-32"),
            (&utf16("instruction,output\r\n"), "UTF-16"),
        ];
        for (bytes, named) in table {
            let error = refused(bytes, None).unwrap_or_default();
            assert!(error.contains(named), "{named}: {error}");
        }
        assert!(
            refused(b"PAR1", Some(Format::JsonLines))
                .unwrap()
                .contains("Parquet")
        );
        let table = refused(b"instruction,output\nq,a\n", Some(Format::Json)).unwrap();
        assert!(table.contains("is CSV and not JSON array"), "{table}");
        for (bytes, said, says) in [
            (
                &b"{\"instruction\": \"q\", \"output\": \"a\"}"[..],
                Format::Csv,
                "is JSON and not CSV",
            ),
            (
                b"instruction\toutput\nq\ta\n",
                Format::Csv,
                "is TSV and not CSV",
            ),
            (
                b"instruction,output\nq,a\n",
                Format::Tsv,
                "is CSV and not TSV",
            ),
        ] {
            let error = refused(bytes, Some(said)).unwrap_or_default();
            assert!(error.contains(says), "{says}: {error}");
        }
        let both = b"instruction,out\tput\nq,a\n";
        assert_eq!(refused(both, Some(Format::Csv)), None);
        assert!(
            refused(b"{}", Some(Format::Parquet))
                .unwrap()
                .contains("not Parquet")
        );
    }

    #[test]
    fn a_table_is_recognised_by_its_header() {
        let table: [(&str, Format, u8); 5] = [
            ("instruction,input,output\nq,,a\n", Format::Csv, b','),
            (
                "\"instruction\",\"output\"\r\n\"q\",\"a, b\"\r\n",
                Format::Csv,
                b',',
            ),
            ("instruction\toutput\nq\ta\n", Format::Tsv, b'\t'),
            ("instruction;output\nq;a\n", Format::Csv, b';'),
            (",instruction,output\n0,q,a\n", Format::Csv, b','),
        ];
        for (text, format, separator) in table {
            let wanted = Separators { format, separator };
            assert_eq!(separated(text.as_bytes()), Some(wanted), "{text}");
            assert_eq!(
                super::separator(text.as_bytes(), format),
                separator,
                "{text}"
            );
        }
    }

    #[test]
    fn json_stays_json_even_if_a_line_is_broken() {
        for text in [
            "",
            "{\"a\": 1}\n",
            "[{\"a\": 1},\n{\"a\": 2}]",
            "not json, but a line\n{\"instruction\": \"q\"}\n",
            "\"a, b\"\n\"c\"\n",
            "{\"broken\", \n{\"broken\"\n",
            "words without separators\nmore words\n",
        ] {
            assert_eq!(refused(text.as_bytes(), None), None, "{text}");
            assert_eq!(separated(text.as_bytes()), None, "{text}");
        }
        assert_eq!(refused(b"PAR1", None), None);
    }
}
