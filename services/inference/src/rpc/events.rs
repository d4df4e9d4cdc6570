//! The events that this replica publishes on the bus, as protobuf.

use togi_common::{AliasName, Generation};
use togi_proto::events::v1 as proto;
use togi_runtime::Event;

use crate::adapters::mismatch::Mismatch;

/// Returns the event that an alias serves a generation here.
pub(crate) fn loaded(
    alias: AliasName,
    generation: Generation,
    replica: String,
    mismatch: Option<Mismatch>,
) -> Event {
    Event::from(proto::AdapterLoaded {
        alias: alias.into(),
        generation: generation.into(),
        replica,
        base_mismatch: mismatch.map(base_mismatch),
    })
}

/// Returns the event that a generation was refused here.
pub(crate) fn rejected(
    alias: AliasName,
    generation: Generation,
    replica: String,
    reason: String,
) -> Event {
    Event::from(proto::AdapterRejected {
        alias: alias.into(),
        generation: generation.into(),
        replica,
        reason,
    })
}

fn base_mismatch(mismatch: Mismatch) -> proto::BaseMismatch {
    let precisions = proto::BaseMismatch {
        trained_precision: mismatch.trained_over,
        served_precision: mismatch.served_over,
        ..Default::default()
    };
    match mismatch.difference {
        Ok(difference) => proto::BaseMismatch {
            max_abs_logit_difference: Some(difference.max),
            mean_abs_logit_difference: Some(difference.mean),
            samples: u32::try_from(difference.samples).unwrap_or(u32::MAX),
            ..precisions
        },
        Err(reason) => proto::BaseMismatch {
            not_measured: reason,
            ..precisions
        },
    }
}
