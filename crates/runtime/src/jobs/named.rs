//! The job that a client names, by its id or by its first characters.

use togi_common::JobId;

use crate::error::{Class, Error, Result};
use crate::job::Job;
use crate::jobs::Jobs;
use crate::layout;

/// Fewest characters by which a job may be named.
const SHORTEST_PREFIX: usize = 4;

impl Jobs {
    /// Returns the job that a text names: by its id, or by at least 4 of its first characters.
    ///
    /// # Errors
    /// `NotFound` with field `job`; `InvalidArgument` if several jobs begin so; as [`Jobs::get`].
    pub async fn named(&self, text: &str) -> Result<Job> {
        match self.get(&layout::parse("job", text)?).await {
            Err(error) if error.class() == Class::NotFound => {}
            found => return found,
        }
        self.get(&self.beginning(text).await?).await
    }

    /// Returns the id of the only job that begins so.
    async fn beginning(&self, text: &str) -> Result<JobId> {
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
