//! Turns a chunk into rows. Each record is read, checked and encoded, or rejected with its reason.
//! The result depends only on the chunk, so that any number of threads gives the same data set.

use serde::Serialize;
use togi_common::{Digest, canonical};
use togi_tokens::Record;
use togi_tokens::manifest::Split;
use togi_tokens::record::{Fault, Reject};
use togi_tokens::row::{Encoder, is_validation};

use crate::input::{Item, Shaped};
use crate::spool::Packed;

/// Most bytes of a rejected record in `rejects.jsonl`.
const SAMPLE_BYTES: usize = 256;

/// The result of a chunk.
#[derive(Default)]
pub(crate) struct Tokenized {
    /// The result of each record, in the source's order.
    pub(crate) fates: Vec<Fate>,
    /// Rows to train on.
    pub(crate) train: Packed,
    /// Rows kept for validation.
    pub(crate) validation: Packed,
}

/// The result of a record.
pub(crate) enum Fate {
    /// A row was made of the record with this digest, from a file of this side.
    Accepted { digest: Digest, split: Split },
    /// No row was made; `line` is the record's line in `rejects.jsonl`, without its newline.
    Rejected {
        number: u64,
        reason: String,
        line: Vec<u8>,
    },
    /// The record's file is refused.
    Refused { place: String, reason: String },
}

/// A line of `rejects.jsonl`.
#[derive(Serialize)]
struct RejectLine<'a> {
    /// The line (JSON Lines) or the position (array, table) in its file, from 1.
    line: u64,
    /// The file, if the source has more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    /// The column at fault, by our name.
    #[serde(skip_serializing_if = "str::is_empty")]
    field: &'a str,
    reason: &'a str,
    /// The beginning of the record as written.
    sample: &'a str,
}

/// The file of a chunk.
#[derive(Clone, Copy)]
struct Origin<'a> {
    /// Its name, if the source has more than one.
    file: Option<&'a str>,
    /// The side of its records.
    split: Split,
}

/// Turns chunks into rows. Each thread has its own.
pub(crate) struct Tokenizing {
    encoder: Encoder,
}

impl Tokenizing {
    pub(crate) fn new(encoder: Encoder) -> Self {
        Self { encoder }
    }

    pub(crate) fn chunk(
        &mut self,
        records: &Shaped,
        file: Option<&str>,
        split: Split,
    ) -> Tokenized {
        let origin = Origin { file, split };
        let mut done = Tokenized::default();
        for item in records.chunk.items() {
            match item.read(&records.shape) {
                Err(Fault::File(reason)) => {
                    let place = records.format.place(item.number);
                    let place = file.map(|file| format!("{file}, {place}")).unwrap_or(place);
                    done.fates.push(Fate::Refused { place, reason });
                }
                Err(Fault::Record(reject)) => {
                    self.record(Err(reject), origin, &item, &mut done);
                }
                Ok(record) => self.record(Ok(record), origin, &item, &mut done),
            }
        }
        done
    }

    fn record(
        &mut self,
        read: Result<Record, Reject>,
        origin: Origin<'_>,
        item: &Item<'_>,
        done: &mut Tokenized,
    ) {
        let encoder = &mut self.encoder;
        let row = read.and_then(|record| encoder.row(&record).map(|row| (record, row)));
        let fate = match row {
            Ok((record, row)) => {
                let share = encoder.settings().validation_share;
                let of_share = || share > 0.0 && is_validation(record.content_hash(), share);
                let kept = origin.split == Split::Validation || of_share();
                if kept {
                    &mut done.validation
                } else {
                    &mut done.train
                }
                .push(&row);
                Fate::Accepted {
                    digest: record.digest(),
                    split: origin.split,
                }
            }
            Err(Reject { reason, field }) => {
                let sample = item.sample(SAMPLE_BYTES);
                let sample = cut(&sample, SAMPLE_BYTES);
                let line = RejectLine {
                    line: item.number,
                    file: origin.file,
                    field: &field,
                    reason: &reason,
                    sample,
                };
                let line = canonical::json(&line).expect("the line's fields have a JSON form");
                let reason = if field.is_empty() {
                    reason
                } else {
                    format!("{field}: {reason}")
                };
                Fate::Rejected {
                    number: item.number,
                    reason,
                    line,
                }
            }
        };
        done.fates.push(fate);
    }
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
