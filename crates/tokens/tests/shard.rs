//! Shards: the same rows give the same bytes and are read back the same; damaged files are refused.

use bytes::Bytes;
use proptest::prelude::*;
use togi_common::DatasetId;
use togi_tokens::shard::{self, Caps, Metadata, ROWS_PER_GROUP, Reader, Writer};
use togi_tokens::{Error, Learn, Row};

fn metadata() -> Metadata {
    Metadata {
        tokenizer_digest: "1".repeat(64),
        template_digest: "2".repeat(64),
        max_length: 512,
        learn: Learn::Answer,
        split: None,
    }
}

fn rows(count: usize) -> Vec<Row> {
    let row = |n: usize| Row {
        sample_id: format!("行-{n}"),
        input_ids: (0..=n % 40)
            .map(|i| ((n * 31 + i * 7) % 32_000) as u32)
            .collect(),
        labels: (0..=n % 40)
            .map(|i| if i < 3 { -100 } else { i as i32 })
            .collect(),
        category: ["", "open_qa", "分類"][n % 3].to_owned(),
    };
    (0..count).map(row).collect()
}

fn dataset() -> DatasetId {
    "d".repeat(64).parse().unwrap()
}

fn write(rows: &[Row]) -> Bytes {
    let mut writer = Writer::new(Vec::new(), &metadata()).unwrap();
    rows.iter()
        .cloned()
        .for_each(|row| writer.push(row).unwrap());
    let (bytes, summary) = writer.finish(dataset()).unwrap();
    assert_eq!(summary.rows, rows.len() as u64);
    assert_eq!(
        summary.tokens,
        rows.iter()
            .map(|row| row.input_ids.len() as u64)
            .sum::<u64>()
    );
    bytes.into()
}

fn read(bytes: &Bytes) -> Result<Vec<Row>, Error> {
    let reader = Reader::open(bytes.clone(), &Caps::default())?;
    let mut rows = Vec::new();
    for batch in reader.groups() {
        rows.extend(shard::from_batch(&batch?)?);
    }
    Ok(rows)
}

#[test]
fn rows_come_back_from_the_same_bytes() {
    for count in [
        0,
        1,
        ROWS_PER_GROUP - 1,
        ROWS_PER_GROUP,
        3 * ROWS_PER_GROUP + 7,
    ] {
        let rows = rows(count);
        let bytes = write(&rows);
        assert_eq!(bytes, write(&rows), "{count} rows");
        assert_eq!(read(&bytes).unwrap(), rows, "{count} rows");
        let reader = Reader::open(bytes, &Caps::default()).unwrap();
        assert_eq!(
            (reader.rows(), reader.metadata(), reader.dataset()),
            (count as u64, &metadata(), &*dataset().to_string())
        );
        let groups: Vec<u64> = reader.group_rows().collect();
        let full = groups.split_last().map_or(&[][..], |(_, full)| full);
        assert!(full.iter().all(|rows| *rows == ROWS_PER_GROUP as u64));
        assert!(reader.group(99).is_err());
    }
}

#[test]
fn the_bytes_are_pinned() {
    // A change here is a new form of shards: raise `SCHEMA_VERSION`, or two builds write different
    // bytes for the same data set.
    let digest = togi_common::Digest::of(write(&rows(300))).to_string();
    assert_eq!(
        digest,
        "6a2f9ef51b1d72fa498cb8affdfe1f1fb3ce22ef3de42f7d3000407f4a3d6cb8"
    );
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let mut row = rows(1).remove(0);
    row.labels.push(1);
    assert!(shard::to_batch(&[row.clone()]).is_err());
    row.labels.pop();
    row.input_ids[0] = u32::MAX;
    assert!(shard::to_batch(&[row]).is_err());
    let batch = shard::to_batch(&rows(3)).unwrap();
    assert!(shard::from_batch(&batch.project(&[0, 1, 2, 3]).unwrap()).is_err());
}

#[test]
fn caps_hold_before_anything_is_parsed() {
    let bytes = write(&rows(600));
    let refused = |caps: Caps| Reader::open(bytes.clone(), &caps).is_err();
    assert!(!refused(Caps::default()));
    assert!(refused(Caps {
        footer_bytes: 100,
        ..Caps::default()
    }));
    assert!(refused(Caps {
        columns: 4,
        ..Caps::default()
    }));
    assert!(refused(Caps {
        row_groups: 2,
        ..Caps::default()
    }));
    assert!(refused(Caps {
        group_rows: 255,
        ..Caps::default()
    }));
    assert!(refused(Caps {
        chunk_bytes: 1_000,
        ..Caps::default()
    }));
    assert!(refused(Caps {
        page_bytes: 1_000,
        ..Caps::default()
    }));
    assert!(refused(Caps {
        header_bytes: 4,
        ..Caps::default()
    }));
}

#[test]
fn a_page_that_claims_gigabytes_is_refused() {
    // The first page header begins after the magic: field 1 (type), field 2 (uncompressed size),
    // field 3 (compressed size).
    let mut bytes = write(&rows(300)).to_vec();
    assert_eq!(
        &bytes[..7],
        b"PAR1\x15\x00\x15",
        "a page header in compact Thrift"
    );
    // 2^31 - 1 as a zigzag varint. It overwrites bytes that are not read any more.
    bytes[7..12].copy_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0x0f]);
    let error = Reader::open(Bytes::from(bytes), &Caps::default()).unwrap_err();
    assert!(error.to_string().contains("page"), "{error}");
}

proptest! {
    #[test]
    fn a_damaged_file_never_panics(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = write(&rows(20)).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = read(&Bytes::from(bytes.clone()));
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(read(&Bytes::from(bytes)).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(read(&Bytes::from(bytes.clone())).is_err());
        bytes.splice(0..0, *b"PAR1");
        bytes.extend_from_slice(&(bytes.len() as u32 - 4).to_le_bytes());
        bytes.extend_from_slice(b"PAR1");
        prop_assert!(read(&Bytes::from(bytes)).is_err());
    }
}
