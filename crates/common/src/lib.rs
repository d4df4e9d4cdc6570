//! Foundation of all crates: digests, ids, checked and near names, canonical JSON, a random
//! generator, and the opening of files that others put into a folder.

pub mod canonical;
pub mod digest;
pub mod file;
pub mod hasher;
pub mod id;
pub mod name;
pub mod nearest;
pub mod random;

pub use digest::Digest;
pub use hasher::Hasher;
pub use id::{DatasetId, Generation};
pub use name::{AliasName, JobId};
