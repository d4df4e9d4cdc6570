//! The ticket by which data-prep is asked for rows: the JSON of its message.

use serde::{Serialize, Serializer};
use togi_proto::dataprep::v1::DatasetTicket;
use togi_tokens::Split;

use crate::learn::data::Query;

impl Serialize for Query<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ticket = match self {
            Self::Lengths { dataset } => DatasetTicket {
                dataset: (*dataset).into(),
                columns: vec!["length".to_owned()],
                ..Default::default()
            },
            Self::Rows {
                order,
                epoch,
                offset,
            } => DatasetTicket {
                dataset: order.dataset.clone(),
                split: match order.split {
                    Split::Train => "train".to_owned(),
                    Split::Validation => "validation".to_owned(),
                },
                seed: order.seed,
                epoch: *epoch,
                offset: *offset,
                shuffle: order.shuffle,
                columns: Vec::new(),
            },
        };
        ticket.serialize(serializer)
    }
}
