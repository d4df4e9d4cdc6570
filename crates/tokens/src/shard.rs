//! Shards: rows as Parquet files and as Arrow batches. The same rows give the same bytes.

mod batch;
mod caps;
mod metadata;
mod read;
mod write;

pub use batch::{from_batch, lengths, schema, to_batch};
pub use caps::{Caps, check};
pub use metadata::{Metadata, ROWS_PER_GROUP, SCHEMA_VERSION};
pub use read::Reader;
pub use write::{Summary, Writer};
