//! Published adapters, and which of them each alias names. Listed from the store every time:
//! manifests are the truth.

use std::collections::BTreeMap;

use object_store::ObjectMeta;
use pbjson_types::Timestamp;
use togi_common::{AliasName, Generation};
use togi_proto::events::v1::AdapterEvaluated;
use togi_proto::trainer::v1 as proto;
use togi_runtime::registry::adapter_manifest::AdapterManifest;
use togi_runtime::registry::aliases::{Alias, Aliases};
use togi_runtime::registry::revisions::BaseMismatch;
use togi_runtime::{Class, Store, layout};

use crate::error::{Error, Result};

/// Fewest digits by which a generation may be named.
const SHORTEST_PREFIX: usize = 8;

/// A published adapter's generation, and when it was published.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The generation.
    pub generation: Generation,
    /// When its manifest was written.
    pub time: Timestamp,
}

/// Returns all published adapters, newest first.
///
/// # Errors
/// The store's.
pub async fn list(store: &Store) -> Result<Vec<Published>> {
    let mut published: Vec<Published> = store
        .list(&layout::adapters())
        .await?
        .iter()
        .filter_map(manifest_of)
        .collect();
    published.sort_by(|a, b| {
        let key = |p: &Published| (p.time.seconds, p.time.nanos);
        key(b)
            .cmp(&key(a))
            .then_with(|| a.generation.cmp(&b.generation))
    });
    Ok(published)
}

/// Returns the published adapter that a text names: an alias, a generation, or at least its first 8
/// digits.
///
/// # Errors
/// `NotFound` with field `adapter`; `InvalidArgument` for digits that fit several.
pub async fn find(store: &Store, aliases: &Aliases, adapter: &str) -> Result<Published> {
    let unknown = || {
        togi_runtime::Error::not_found(format!("adapter {adapter:?} does not exist"))
            .with_field("adapter")
    };
    if let Ok(generation) = adapter.parse() {
        return match store.head(&layout::adapter_manifest(generation)).await {
            Ok(object) => manifest_of(&object).ok_or_else(|| unknown().into()),
            Err(error) if error.class() == Class::NotFound => Err(unknown().into()),
            Err(error) => Err(error.into()),
        };
    }
    let alias = layout::parse("adapter", adapter)?;
    let published = list(store).await?;
    if let Some(alias) = aliases.current(&alias).await? {
        let named = published
            .into_iter()
            .find(|published| published.generation == alias.generation());
        return named.ok_or_else(|| unknown().into());
    }
    let prefix =
        adapter.len() >= SHORTEST_PREFIX && adapter.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut fitting = published
        .into_iter()
        .filter(|published| prefix && published.generation.to_string().starts_with(adapter));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(Error::invalid(
            "adapter",
            format!("{adapter:?} fits several generations"),
        )),
        (None, _) => Err(unknown().into()),
    }
}

/// Returns a published adapter in the contract's form; `aliases` is [`named`]'s answer.
///
/// # Errors
/// [`Error::Damaged`] if the manifest cannot be parsed; the store's.
pub async fn describe(
    store: &Store,
    published: &Published,
    aliases: &BTreeMap<Generation, Vec<AliasName>>,
) -> Result<proto::Adapter> {
    let path = layout::adapter_manifest(published.generation);
    let bytes = store.get(&path).await?;
    let manifest: AdapterManifest =
        serde_json::from_slice(&bytes).map_err(|error| Error::damaged(path.to_string(), error))?;
    Ok(proto::Adapter {
        base_digest: manifest.identity.base,
        tokenizer_digest: manifest.identity.tokenizer,
        dataset: manifest.identity.dataset,
        recipe_digest: manifest.identity.recipe,
        base_precision: manifest.identity.base_precision,
        rank: manifest.rank,
        alpha: manifest.alpha,
        target_modules: manifest.target_modules,
        size_bytes: manifest
            .files
            .get(togi_model::adapter::TENSORS_FILE)
            .map_or(0, |file| file.bytes),
        job: manifest.job,
        create_time: Some(published.time),
        aliases: (aliases.get(&published.generation).into_iter().flatten())
            .map(AliasName::to_string)
            .collect(),
        recipe_name: manifest.recipe_name,
        generation: manifest.generation.to_string(),
    })
}

/// Returns the aliases that name each generation now.
///
/// # Errors
/// The store's.
pub async fn named(aliases: &Aliases) -> Result<BTreeMap<Generation, Vec<AliasName>>> {
    let mut named: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for alias in aliases.list().await? {
        named
            .entry(alias.said.generation)
            .or_default()
            .push(alias.said.alias);
    }
    Ok(named)
}

/// Returns an alias in the contract's form.
#[must_use]
pub fn to_proto(alias: Alias) -> proto::Alias {
    let Alias { revision, said } = alias;
    let time = said.time.parse::<jiff::Timestamp>().ok();
    proto::Alias {
        name: said.alias.into(),
        generation: said.generation.into(),
        revision,
        allow_base_mismatch: said.base_mismatch.into(),
        update_time: time.map(|time| Timestamp {
            seconds: time.as_second(),
            nanos: time.subsec_nanosecond(),
        }),
    }
}

/// Promotes a job's adapter, unless that was done since the job was made: a second attempt of the
/// job must not undo a promotion that followed the first one. An adapter that passed a
/// gate is promoted over nothing but what it was measured beside. Returns what the alias names if
/// that is why the adapter was not promoted.
///
/// # Errors
/// The store's.
pub async fn promote_once(
    aliases: &Aliases,
    alias: &AliasName,
    generation: Generation,
    since: jiff::Timestamp,
    gate: Option<&AdapterEvaluated>,
) -> Result<Option<Alias>> {
    let is_ours = |revision: &Alias| {
        let time = revision.said.time.parse().unwrap_or(jiff::Timestamp::MAX);
        time >= since && revision.generation() == generation && !revision.said.rollback
    };
    if aliases.history(alias).await?.iter().any(is_ours) {
        return Ok(None);
    }
    let named = match gate {
        None => {
            let promoted = aliases.promote(alias, generation, BaseMismatch::Refused);
            promoted.await?
        }
        Some(AdapterEvaluated { serving, .. }) => {
            let over = serving.parse().ok();
            aliases.promote_over(over, alias, generation).await?
        }
    };
    Ok(Some(named).filter(|named| named.generation() != generation))
}

fn manifest_of(object: &ObjectMeta) -> Option<Published> {
    let parts: Vec<_> = object.location.parts().collect();
    let [_, generation, file] = parts.as_slice() else {
        return None;
    };
    let generation = generation.as_ref().parse().ok()?;
    (file.as_ref() == "manifest.json").then(|| Published {
        generation,
        time: Timestamp {
            seconds: object.last_modified.timestamp(),
            nanos: i32::try_from(object.last_modified.timestamp_subsec_nanos()).unwrap_or_default(),
        },
    })
}
