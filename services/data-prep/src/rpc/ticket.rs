//! Flight tickets and descriptors. A ticket is the proto3 JSON of `DatasetTicket`.

use std::sync::Arc;

use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::{FlightDescriptor, Ticket};
use arrow_schema::{Schema, SchemaRef};
use bytes::Bytes;
use togi_proto::dataprep::v1::DatasetTicket;
use togi_runtime::{DatasetId, Error, Result, layout};
use togi_tokens::manifest::Split;
use togi_tokens::shard::schema;

use crate::catalog::Asked;
use crate::rows::Selection;

/// Most bytes of a ticket.
const MAX_BYTES: usize = 4 << 10;

/// The rows and columns that a reader wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) selection: Selection,
    /// The indices of the columns in a shard's schema; empty means all.
    pub(crate) columns: Vec<usize>,
}

impl Wanted {
    /// Returns all rows of a split in their stored order.
    pub(crate) fn all(split: Split) -> Self {
        Self {
            selection: Selection {
                split,
                shuffle: None,
                offset: 0,
            },
            columns: Vec::new(),
        }
    }

    /// Reads a ticket, which names the data set by its digest.
    pub(crate) fn from_ticket(ticket: &Ticket) -> Result<(DatasetId, Self)> {
        let (dataset, wanted) = Self::from_json(&ticket.ticket, "ticket")?;
        Ok((layout::parse("ticket.dataset", &dataset)?, wanted))
    }

    /// Reads a descriptor: a path `[data set]` or `[data set, split]`, or a ticket's JSON as a
    /// command. Both may have the data set's name instead of its digest.
    pub(crate) fn from_descriptor(descriptor: &FlightDescriptor) -> Result<(Asked, Self)> {
        let (dataset, wanted) = match descriptor.r#type() {
            DescriptorType::Cmd => Self::from_json(&descriptor.cmd, "descriptor.cmd")?,
            DescriptorType::Path => {
                let (dataset, split) = match descriptor.path.as_slice() {
                    [dataset] => (dataset, ""),
                    [dataset, split] => (dataset, split.as_str()),
                    _ => {
                        let text = "descriptor.path must be a data set, or a data set and a split";
                        return Err(Error::invalid("descriptor.path", text));
                    }
                };
                let split = split_named("descriptor.path", split)?;
                (dataset.clone(), Self::all(split))
            }
            DescriptorType::Unknown => {
                let text = "descriptor must be a path or a command";
                return Err(Error::invalid("descriptor.type", text));
            }
        };
        Ok((Asked::from_text(&dataset)?, wanted))
    }

    /// Reads a ticket's JSON, with the text in its field `dataset`.
    fn from_json(json: &[u8], field: &str) -> Result<(String, Self)> {
        if json.len() > MAX_BYTES {
            return Err(Error::invalid(
                field,
                format!("{field} has more than {MAX_BYTES} bytes"),
            ));
        }
        let ticket: DatasetTicket = serde_json::from_slice(json).map_err(|e| {
            Error::invalid(
                field,
                format!("{field} is not the JSON of a DatasetTicket: {e}"),
            )
        })?;
        let wanted = Self {
            selection: Selection {
                split: split_named(&format!("{field}.split"), &ticket.split)?,
                shuffle: ticket.shuffle.then_some((ticket.seed, ticket.epoch)),
                offset: ticket.offset,
            },
            columns: columns(&format!("{field}.columns"), &ticket.columns)?,
        };
        Ok((ticket.dataset, wanted))
    }

    /// Returns the schema of the wanted columns.
    pub(crate) fn schema(&self) -> Result<SchemaRef> {
        if self.columns.is_empty() {
            return Ok(schema());
        }
        let schema = schema().project(&self.columns);
        let wrong = |e| Error::internal("the columns could not be chosen").with_source(e);
        Ok(Arc::new(schema.map_err(wrong)?))
    }

    /// Returns the ticket for these rows of a data set.
    pub(crate) fn to_ticket(&self, dataset: DatasetId) -> Result<Ticket> {
        let Selection {
            split,
            shuffle,
            offset,
        } = self.selection;
        let (seed, epoch) = shuffle.unwrap_or_default();
        let ticket = DatasetTicket {
            dataset: dataset.into(),
            split: split_name(split).to_owned(),
            seed,
            epoch,
            offset,
            shuffle: shuffle.is_some(),
            columns: match self.columns.as_slice() {
                [] => Vec::new(),
                _ => names(self.schema()?.as_ref()),
            },
        };
        let json = serde_json::to_vec(&ticket)
            .map_err(|e| Error::internal("a ticket could not be written").with_source(e))?;
        Ok(Ticket {
            ticket: Bytes::from(json),
        })
    }
}

fn names(schema: &Schema) -> Vec<String> {
    let fields = schema.fields().iter();
    fields.map(|field| field.name().clone()).collect()
}

fn columns(field: &str, wanted: &[String]) -> Result<Vec<usize>> {
    let known = names(&schema());
    let index = |name: &String| {
        let index = known.iter().position(|known| known == name);
        index.ok_or_else(|| {
            let text = format!("{field} has {name:?}; known are {}", known.join(", "));
            Error::invalid(field, text)
        })
    };
    wanted.iter().map(index).collect()
}

/// Returns a split's name on the wire.
pub(crate) fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Validation => "validation",
    }
}

fn split_named(field: &str, word: &str) -> Result<Split> {
    match word {
        "" | "train" => Ok(Split::Train),
        "validation" => Ok(Split::Validation),
        _ => Err(Error::invalid(
            field,
            format!("{field} must be train or validation"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(json: &str) -> Result<(DatasetId, Wanted)> {
        Wanted::from_ticket(&Ticket {
            ticket: Bytes::copy_from_slice(json.as_bytes()),
        })
    }

    #[test]
    fn a_ticket_comes_back_as_it_went() {
        let id: DatasetId = "ab".repeat(32).parse().unwrap();
        let cases = [
            (None, vec![]),
            (Some((7, 0)), vec![3]),
            (Some((u64::MAX, 3)), vec![1, 0]),
        ];
        for (shuffle, columns) in cases {
            let wanted = Wanted {
                columns,
                selection: Selection {
                    split: Split::Validation,
                    shuffle,
                    offset: 9,
                },
            };
            assert_eq!(
                Wanted::from_ticket(&wanted.to_ticket(id).unwrap()).unwrap(),
                (id, wanted)
            );
        }
    }

    /// Clients store tickets and write their own.
    #[test]
    fn a_ticket_keeps_its_spelling() {
        let digest = "ab".repeat(32);
        let wanted = Wanted {
            columns: vec![1, 0],
            selection: Selection {
                split: Split::Validation,
                shuffle: Some((u64::MAX, 3)),
                offset: 9,
            },
        };
        let ticket = wanted.to_ticket(digest.parse().unwrap()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&ticket.ticket).unwrap();
        let expected = serde_json::json!({
            "dataset": digest,
            "split": "validation",
            "seed": "18446744073709551615",
            "epoch": "3",
            "offset": "9",
            "shuffle": true,
            "columns": ["input_ids", "sample_id"],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_wrong_ticket_is_refused_by_field() {
        let digest = "ab".repeat(32);
        let table = [
            ("{".to_owned(), "ticket"),
            (format!("{{\"dataset\":\"{digest}\",\"rows\":1}}"), "ticket"),
            (
                format!("{{\"dataset\":\"{digest}\",\"offset\":-1}}"),
                "ticket",
            ),
            (
                format!("{{\"dataset\":\"{digest}\",\"split\":\"test\"}}"),
                "ticket.split",
            ),
            (
                format!("{{\"dataset\":\"{digest}\",\"columns\":[\"rows\"]}}"),
                "ticket.columns",
            ),
            ("{\"dataset\":\"dolly\"}".to_owned(), "ticket.dataset"),
            ("{}".to_owned(), "ticket.dataset"),
            (" ".repeat(MAX_BYTES + 1), "ticket"),
        ];
        for (json, field) in table {
            let error = ticket(&json).unwrap_err();
            assert_eq!(error.field(), Some(field), "{json}: {}", error.message());
        }
    }

    #[test]
    fn a_descriptor_is_a_path_or_a_command() {
        let path = |parts: &[&str]| {
            let parts = parts.iter().map(|&part| part.to_owned()).collect();
            Wanted::from_descriptor(&FlightDescriptor::new_path(parts))
        };
        assert_eq!(path(&["dolly"]).unwrap().1.selection.split, Split::Train);
        assert_eq!(
            path(&["dolly", "validation"]).unwrap().1.selection.split,
            Split::Validation
        );
        for bad in [&[][..], &["a", "b", "c"], &["../x"], &["a", "test"]] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        let cmd =
            FlightDescriptor::new_cmd("{\"dataset\":\"dolly\",\"seed\":\"5\",\"shuffle\":true}");
        let (asked, wanted) = Wanted::from_descriptor(&cmd).unwrap();
        assert_eq!(asked, Asked::Name("dolly".into()));
        assert_eq!(wanted.selection.shuffle, Some((5, 0)));
    }
}
