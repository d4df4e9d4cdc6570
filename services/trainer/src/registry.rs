//! Published adapters, and which of them each alias names. Listed from the store every time:
//! manifests are the truth.

use std::collections::BTreeMap;

use jiff::Timestamp;
use object_store::ObjectMeta;
use togi_base::adapter;
use togi_common::{AliasName, Generation};
use togi_runtime::registry::adapter_manifest::AdapterManifest;
use togi_runtime::registry::aliases::{Alias, Aliases};
use togi_runtime::registry::revisions::BaseMismatch;
use togi_runtime::{Class, Store, layout};

use crate::error::{Error, Result};
use crate::gate::Evaluation;

/// Fewest digits by which a generation may be named.
const SHORTEST_PREFIX: usize = 8;

/// A published adapter's generation, and when it was published.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Published {
    /// The generation.
    pub generation: Generation,
    /// When its manifest was written.
    pub time: Timestamp,
}

/// Returns all published adapters, newest first.
///
/// # Errors
/// The store's.
pub(crate) async fn list(store: &Store) -> Result<Vec<Published>> {
    let mut published: Vec<Published> = store
        .list(&layout::adapters())
        .await?
        .iter()
        .filter_map(manifest_of)
        .collect();
    published.sort_by(|a, b| {
        let by_time = b.time.cmp(&a.time);
        by_time.then_with(|| a.generation.cmp(&b.generation))
    });
    Ok(published)
}

/// Returns the published adapter that a text names: an alias, a generation, or at least its first 8
/// digits.
///
/// # Errors
/// `NotFound` with field `adapter`; `InvalidArgument` for digits that fit several.
pub(crate) async fn find(store: &Store, aliases: &Aliases, name: &str) -> Result<Published> {
    let unknown = async || {
        let near = store.nearest(&layout::aliases(), name).await;
        let message = if is_short_prefix(name) {
            format!(
                "adapter {name:?} does not exist; a generation is named by at least \
                 {SHORTEST_PREFIX} of its digits{near}"
            )
        } else {
            format!("adapter {name:?} does not exist{near}")
        };
        togi_runtime::Error::not_found(message).with_field("adapter")
    };
    if let Ok(generation) = name.parse() {
        return match store.head(&layout::adapter_manifest(generation)).await {
            Ok(object) => match manifest_of(&object) {
                Some(published) => Ok(published),
                None => Err(unknown().await.into()),
            },
            Err(error) if error.class() == Class::NotFound => Err(unknown().await.into()),
            Err(error) => Err(error.into()),
        };
    }
    let alias = layout::parse("adapter", name)?;
    let published = list(store).await?;
    if let Some(alias) = aliases.current(&alias).await? {
        let named = published
            .into_iter()
            .find(|published| published.generation == alias.generation());
        return match named {
            Some(published) => Ok(published),
            None => Err(unknown().await.into()),
        };
    }
    let prefix = name.len() >= SHORTEST_PREFIX && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut fitting = published
        .into_iter()
        .filter(|published| prefix && published.generation.to_string().starts_with(name));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(Error::invalid(
            "adapter",
            format!("{name:?} fits several generations"),
        )),
        (None, _) => Err(unknown().await.into()),
    }
}

/// Whether a name can only be meant as a generation's first digits, and has too few.
fn is_short_prefix(name: &str) -> bool {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.len() < SHORTEST_PREFIX && name.bytes().all(is_hex)
}

/// Returns a published adapter's manifest.
///
/// # Errors
/// [`Error::Damaged`] if it cannot be read as one; `NotFound` if it is gone; the store's.
pub(crate) async fn manifest(store: &Store, published: &Published) -> Result<AdapterManifest> {
    let generation = published.generation;
    let read = adapter::described(store, generation).await;
    read.map_err(|error| match error {
        togi_base::Error::NotPublished(_) => {
            togi_runtime::Error::not_found(error.to_string()).into()
        }
        other => Error::unreadable(layout::adapter_manifest(generation).as_ref(), other),
    })
}

/// Returns the aliases that name each generation now.
///
/// # Errors
/// The store's.
pub(crate) async fn named(aliases: &Aliases) -> Result<BTreeMap<Generation, Vec<AliasName>>> {
    let mut named: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for alias in aliases.list().await? {
        named
            .entry(alias.content.generation)
            .or_default()
            .push(alias.content.alias);
    }
    Ok(named)
}

/// Promotes a job's adapter once: a second attempt of the job must not undo a promotion that
/// followed the first one, so nothing is done if the adapter was promoted after `since`, when the
/// job was created. After a gate it is promoted only if the alias still names the generation that
/// it was measured beside. Otherwise the alias is returned.
///
/// # Errors
/// The store's.
pub(crate) async fn promote_once(
    aliases: &Aliases,
    alias: &AliasName,
    generation: Generation,
    since: Timestamp,
    gate: Option<&Evaluation>,
) -> Result<Option<Alias>> {
    let is_ours = |revision: &Alias| {
        let time = revision.content.time.parse().unwrap_or(Timestamp::MAX);
        time >= since && revision.generation() == generation && !revision.content.rollback
    };
    if aliases.history(alias).await?.iter().any(is_ours) {
        return Ok(None);
    }
    let named = match gate {
        None => {
            let promoted = aliases.promote(alias, generation, BaseMismatch::Refused);
            promoted.await?
        }
        Some(Evaluation { serving, .. }) => {
            aliases.promote_over(*serving, alias, generation).await?
        }
    };
    Ok(Some(named).filter(|named| named.generation() != generation))
}

fn manifest_of(object: &ObjectMeta) -> Option<Published> {
    let parts: Vec<_> = object.location.parts().collect();
    let [_, generation, file] = parts.as_slice() else {
        return None;
    };
    if file.as_ref() != "manifest.json" {
        return None;
    }
    let modified = object.last_modified;
    let nanos = i32::try_from(modified.timestamp_subsec_nanos()).unwrap_or_default();
    Some(Published {
        generation: generation.as_ref().parse().ok()?,
        time: Timestamp::new(modified.timestamp(), nanos).ok()?,
    })
}
