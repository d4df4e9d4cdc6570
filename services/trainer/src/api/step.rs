//! The message of a step, which is also a line of a job's log and its progress on the bus.

use togi_proto::trainer::v1 as proto;

use crate::api::stored::stored_as;
use crate::learn::step::Step;

stored_as!(Step, proto::Step);

macro_rules! same_fields {
    ($($field:ident)*) => {
        impl From<&Step> for proto::Step {
            fn from(step: &Step) -> Self {
                Self { $($field: step.$field,)* }
            }
        }

        impl From<proto::Step> for Step {
            fn from(step: proto::Step) -> Self {
                Self { $($field: step.$field,)* }
            }
        }
    };
}

same_fields! {
    step steps loss gradient_norm learning_rate epoch tokens_per_second samples_per_second
    memory_bytes seconds_left tokens device_memory_bytes gpu_utilization_percent gpu_power_watts
    gpu_memory_bytes skipped_steps records
}
