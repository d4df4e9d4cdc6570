//! The registry's objects: adapter manifests, model cards, the revisions of aliases and names, and
//! the replicas that serve them. The trainer writes most of them, inference follows them.

pub mod adapter_manifest;
pub mod aliases;
pub mod base_place;
pub mod model_card;
pub mod replicas;
pub mod revisions;
