//! What the name of an adapter means where it is read in this process: a PEFT folder, or as over
//! the services an alias or a generation.

use std::path::{Path, PathBuf};

use togi_base::adapter;
use togi_model::adapter::Files;
use togi_model::{Base, Lora};
use togi_proto::trainer::v1::GetAdapterRequest;
use togi_runtime::registry::adapter_manifest::AdapterManifest;
use togi_runtime::{Generation, Store};

use crate::client::present;
use crate::error::{Error, Result};
use crate::local;
use crate::session::Session;

/// The largest file of tensors that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 4 << 30;

/// Fewest digits by which a generation may be named, and all of them.
const SHORTEST_PREFIX: usize = 8;
const WHOLE: usize = 64;

/// An adapter whose base is not read yet.
pub enum Named {
    /// A folder.
    Folder(PathBuf),
    /// One from the registry.
    Published(Box<Published>),
}

/// A published adapter's files.
pub struct Published {
    name: PathBuf,
    manifest: AdapterManifest,
    files: Files,
}

/// Where a name was found.
pub(crate) enum Found {
    /// A folder, which may be missing.
    Folder(PathBuf),
    /// A generation of the registry.
    Registered(Registered),
}

/// A generation, and the store that has it.
pub(crate) struct Registered {
    pub(crate) store: Store,
    pub(crate) generation: Generation,
}

/// Finds what a name means in every command: what exists on this machine is a folder; another
/// name, without a slash, is an alias, a generation or at least 8 digits of one, if the services
/// run.
///
/// # Errors
/// The registry's, if it has no such adapter; the store's; [`Error::Missing`] if there is neither a
/// folder nor a registry.
pub(crate) async fn find(name: &Path, session: &Session) -> Result<Found> {
    let folder = || Found::Folder(name.to_owned());
    let text = name.to_str().filter(|text| !text.contains('/'));
    let Some(text) = text.filter(|_| !name.exists()) else {
        return Ok(folder());
    };
    match registered(text, session).await {
        Ok(registered) => Ok(Found::Registered(registered)),
        Err(Error::NoAnswer { endpoint, .. }) => Err(Error::Missing(format!(
            "{text}: there is no such folder, and nothing answers at {endpoint} that could know an \
             alias or a generation of this name; start it with `togi up`, or name another with \
             --endpoint"
        ))),
        Err(error) => Err(error),
    }
}

/// Finds an alias, a generation or at least 8 digits of one in the registry.
///
/// # Errors
/// The registry's, if it has no such adapter or does not answer; the store's.
pub(crate) async fn registered(name: &str, session: &Session) -> Result<Registered> {
    let mut client = session.clients.adapters().await?;
    let request = GetAdapterRequest {
        adapter: name.to_owned(),
    };
    let answer = client.get_adapter(request).await?.into_inner();
    let generation = present(answer.adapter, "adapter")?.generation;
    let generation = generation
        .parse()
        .map_err(|_| Error::Failed(format!("{generation:?} is no generation")))?;
    let store = session.store().await?;
    Ok(Registered { store, generation })
}

/// Returns the name by which inference knows an adapter: an alias, or the whole generation of
/// which `name` has at least 8 digits.
///
/// # Errors
/// A folder, which no service reads; the registry's, if no generation or several begin so.
pub(crate) async fn at_services(name: &str, session: &Session) -> Result<String> {
    if name.contains('/') {
        let reason = "--adapter names a folder, which needs --base; the services know aliases and \
                      generations";
        return Err(Error::Usage(reason.to_owned()));
    }
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if !(SHORTEST_PREFIX..WHOLE).contains(&name.len()) || !name.bytes().all(is_digit) {
        return Ok(name.to_owned());
    }
    let mut client = match session.clients.adapters().await {
        Ok(client) => client,
        // It may be an alias all the same; inference says so.
        Err(Error::NoAnswer { .. }) => return Ok(name.to_owned()),
        Err(error) => return Err(error),
    };
    let request = GetAdapterRequest {
        adapter: name.to_owned(),
    };
    let answer = client.get_adapter(request).await?.into_inner();
    let adapter = present(answer.adapter, "adapter")?;
    let is_alias = adapter.aliases.iter().any(|alias| alias == name);
    Ok(if is_alias {
        name.to_owned()
    } else {
        adapter.generation
    })
}

impl Named {
    /// Finds an adapter and reads what is published of it.
    ///
    /// # Errors
    /// As [`find`]; the adapter's, if it is damaged.
    pub(crate) async fn find(name: &Path, session: &Session) -> Result<Self> {
        let (store, generation) = match find(name, session).await? {
            Found::Folder(folder) => return Ok(Self::Folder(folder)),
            Found::Registered(Registered { store, generation }) => (store, generation),
        };
        let unfit = |error| unfit(name, error);
        let manifest = adapter::manifest(&store, generation).await.map_err(unfit)?;
        let files = adapter::files(&store, &manifest, MAX_BYTES).await;
        let files = files.map_err(unfit)?;
        Ok(Self::Published(Box::new(Published {
            name: name.to_owned(),
            manifest,
            files,
        })))
    }

    /// Reads the tensors for a base. Not for async code.
    ///
    /// # Errors
    /// The folder is missing; the adapter does not fit, or was published for another base.
    pub fn lora(&self, base: &Base) -> Result<Lora> {
        match self {
            Self::Folder(folder) => local::adapter(folder, base.config()),
            Self::Published(published) => published.lora(base),
        }
    }
}

impl Published {
    fn lora(&self, base: &Base) -> Result<Lora> {
        let (theirs, ours) = (&self.manifest.identity.base, base.digest());
        if theirs != ours {
            let reason = format!("it was trained over the base {theirs}, and --base is {ours}");
            return Err(Error::unfit("adapter", &self.name, reason));
        }
        adapter::lora(&self.manifest, &self.files, base.config())
            .map_err(|error| unfit(&self.name, error))
    }
}

/// Keeps the class of the store's errors, and names the adapter in the others.
pub(crate) fn unfit(name: &Path, error: togi_base::Error) -> Error {
    match error {
        togi_base::Error::Runtime(error) => error.into(),
        other => Error::unfit("adapter", name, other),
    }
}
