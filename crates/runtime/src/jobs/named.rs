//! The job that a client names, by its id or by its first characters.

use togi_common::JobId;

use crate::error::{Class, Error, Result};
use crate::jobs::Jobs;
use crate::layout;

/// Fewest characters by which a job may be named.
const SHORTEST_PREFIX: usize = 4;

impl Jobs {
    /// Returns the id of a job that a text names: an id, or at least its first 4 characters.
    ///
    /// # Errors
    /// `NotFound` with field `job`; `InvalidArgument` if several jobs begin so.
    pub async fn named(&self, text: &str) -> Result<JobId> {
        let id: JobId = layout::parse("job", text)?;
        match self.store.exists(&layout::job_request(&id)).await {
            Ok(false) => {}
            Ok(true) => return Ok(id),
            // NATS may know it.
            Err(error) if error.class() == Class::Unavailable => return Ok(id),
            Err(error) => return Err(error),
        }
        let mut ids = self.store.list_dirs(&layout::jobs()).await?;
        ids.retain(|id| text.len() >= SHORTEST_PREFIX && id.starts_with(text));
        match ids.as_slice() {
            [] => {
                let message = format!(
                    "there is no job \"{text}\"; a job is named by its id, or by at least \
                     {SHORTEST_PREFIX} of its first characters"
                );
                Err(Error::not_found(message).with_field("job"))
            }
            [one] => layout::parse("job", one),
            several => {
                let message = format!("{} jobs begin with \"{text}\"", several.len());
                Err(Error::invalid("job", message))
            }
        }
    }
}
