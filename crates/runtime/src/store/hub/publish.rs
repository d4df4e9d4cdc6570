//! Puts files into a model's repository in one commit, as huggingface_hub does: the repository is
//! created if it does not exist.

use bytes::Bytes;
use hf_hub::progress::Progress;
use hf_hub::repository::{CommitOperation, RepoTypeModel};
use hf_hub::{HFClient, HFError};

use super::reference::HubRef;
use crate::error::{Class, Error, Result, scrub};

/// Who may read a repository that is created. An existing one stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Its owner.
    Private,
    /// Everybody.
    Public,
}

/// The files of one commit.
#[derive(Clone, Debug)]
pub struct Upload {
    /// The files by their names in the repository.
    pub files: Vec<(String, Bytes)>,
    /// The commit's message.
    pub message: String,
    /// Of a repository that is created.
    pub visibility: Visibility,
}

/// A commit that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The commit, if the hub names it.
    pub commit: Option<String>,
    /// Where a browser finds it, if the hub says so.
    pub url: Option<String>,
}

/// Creates the repository if necessary, and commits the files to the reference's branch.
///
/// # Errors
/// `FailedPrecondition` if the hub wants another token; `InvalidArgument` if it refuses the files;
/// `Unavailable`.
pub(super) async fn upload(
    client: &HFClient,
    reference: &HubRef,
    upload: Upload,
    progress: Progress,
) -> Result<Published> {
    let id = format!("{}/{}", reference.owner, reference.name);
    let created = client
        .create_repository()
        .repo_id(&id)
        .repo_type(RepoTypeModel)
        .private(upload.visibility == Visibility::Private)
        .exist_ok(true)
        .send()
        .await;
    match created {
        // A token may be allowed to write to a repository, and not to create one.
        Ok(_) | Err(HFError::Forbidden { .. }) => {}
        Err(error) => return Err(failed(reference, error)),
    }
    let files = upload.files.into_iter();
    let operations = files.map(|(name, bytes)| CommitOperation::add_bytes(name, bytes));
    let repository = client.model(&reference.owner, &reference.name);
    let commit = repository
        .create_commit()
        .operations(operations.collect())
        .commit_message(upload.message)
        .maybe_revision(reference.revision.clone())
        .progress(progress)
        .send();
    let made = commit.await.map_err(|error| failed(reference, error))?;
    Ok(Published {
        commit: made.commit_oid,
        url: made.commit_url,
    })
}

fn failed(reference: &HubRef, error: HFError) -> Error {
    let said = match &error {
        HFError::Http { context } => context.server_message.clone(),
        _ => None,
    };
    let refused = matches!(&error, HFError::Http { context } if context.status.is_client_error());
    let (class, what) = match &error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => (
            Class::FailedPrecondition,
            "may not be written with this token; HF_TOKEN needs the right to write there"
                .to_owned(),
        ),
        HFError::RepoNotFound { .. } => (Class::NotFound, "has no such branch".to_owned()),
        HFError::Conflict { .. } => (Class::Aborted, "was changed meanwhile".to_owned()),
        HFError::RateLimited { .. } => (
            Class::ResourceExhausted,
            "is written to too often".to_owned(),
        ),
        _ if refused => {
            let said = said.unwrap_or_else(|| "without a reason".to_owned());
            let what = format!("was refused by the hub: {}", scrub(&said));
            (Class::InvalidArgument, what)
        }
        _ => (Class::Unavailable, "cannot be written to now".to_owned()),
    };
    let cause = scrub(&error.to_string());
    Error::new(class, format!("{reference} {what}")).with_source(cause)
}
