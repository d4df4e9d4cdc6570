//! What a job leaves to read: its log, its report, its TensorBoard events and the adapter's model
//! card.

pub mod log;
pub(crate) mod report;
pub(crate) mod tensorboard;

pub(crate) mod model_card;
