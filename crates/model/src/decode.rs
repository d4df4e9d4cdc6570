//! Decoding: new tokens of several sequences at once, each over its cache and with its own adapter.

pub(crate) mod forward;
pub(crate) mod groups;
