//! Policies as objects: `policies/<name>/<n>.json`, create-if-absent, the highest n counts. The
//! bucket `togi_policies` mirrors them for watchers of NATS; nothing here reads it.
//!
//! A policy looks forward: it keeps the newest revision of its data set at the time when it was
//! applied, and trains only what comes after, or what its schedule asks for. A data set that nobody
//! has prepared yet is at revision 0, so that its first revision trains.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use togi_runtime::bus::kv::Kv;
use togi_runtime::{Bus, DatasetId, Stopper, Store, layout};
use tracing::warn;

use crate::dataset;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::policies::schedule::Schedule;
use crate::policies::trigger::{Time, Trigger};
use crate::recipe::Recipe;
use crate::request::{Asked, By, CreateJob, Origin, Resolved};
use crate::submission::Admission;

/// Time between two comparisons of the mirror with the store.
const MIRROR_PERIOD: Duration = Duration::from_secs(30);

/// A version of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    /// The policy; nothing once it is deleted.
    policy: Option<Body>,
    /// Newest revision of the data set's name when this version was applied.
    seen: u64,
    /// When it was applied: its schedule begins there.
    #[serde(default)]
    since: Option<Timestamp>,
}

/// The content of a policy, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// Its name.
    pub name: String,
    /// The name of its data set.
    pub dataset: String,
    /// The name of a base in the service's configuration.
    pub base: String,
    /// How to train.
    pub recipe: Recipe,
    /// The alias that adapters are promoted to.
    pub alias: String,
    /// When it trains.
    pub trigger: Trigger,
    /// What an adapter must pass before it is promoted.
    pub gate: Gate,
}

/// A policy that is in force.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    /// The content of this version.
    pub body: Body,
    /// Its version, from 1; a deletion is a version too.
    pub version: u64,
    /// New revisions of the data set are those after this one.
    pub seen: u64,
    /// When it was applied.
    pub since: Option<Timestamp>,
}

impl Policy {
    /// Returns a policy, if it is in force.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its newest version cannot be parsed; the store's.
    pub(crate) async fn in_force(store: &Store, name: &str) -> Result<Option<Policy>> {
        let found = newest(store, name).await?;
        Ok(found.and_then(|(version, found)| found.into_policy(version)))
    }

    /// Returns the policy's request to train a revision of its data set.
    #[must_use]
    pub(crate) fn resolve(&self, dataset: DatasetId, revision: u64, by: By) -> Resolved {
        let policy = self.body.name.clone();
        let request = CreateJob {
            policy: Some(policy.clone()),
            ..request(&self.body, dataset.into())
        };
        let origin = Origin {
            policy,
            version: self.version,
            revision,
            by,
        };
        Resolved {
            request,
            origin: Some(origin),
        }
    }

    /// Returns which revisions' time has come by now.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this build does not take its schedule any more.
    pub(crate) fn time(&self, now: Timestamp) -> Result<Time> {
        self.body.trigger.time(self.seen, self.since, now)
    }
}

impl Version {
    fn into_policy(self, version: u64) -> Option<Policy> {
        Some(Policy {
            body: self.policy?,
            version,
            seen: self.seen,
            since: self.since,
        })
    }
}

/// The policies.
#[derive(Clone)]
pub(crate) struct Policies {
    store: Store,
    bus: Bus,
    admission: Admission,
}

impl Policies {
    /// Returns the policies in the store; a bucket of the bus mirrors every change.
    #[must_use]
    pub(crate) fn new(store: Store, bus: Bus, admission: Admission) -> Policies {
        Policies {
            store,
            bus,
            admission,
        }
    }

    fn mirror(&self) -> &Kv {
        self.bus.policies()
    }

    /// Keeps the mirror equal to the store until the stopper stops: now, every half minute, and as
    /// soon as NATS is back.
    ///
    /// # Errors
    /// Never: the signature is that of a task.
    pub(crate) async fn keep_mirrored(self, stopper: Stopper) -> togi_runtime::Result<()> {
        let mut rounds = self.bus.rounds(MIRROR_PERIOD);
        while rounds.next(&stopper).await {
            if let Some(Err(error)) = stopper.run(self.mirror_rest()).await {
                rounds.failed();
                warn!(%error, "the bucket of policies cannot be updated now");
            }
        }
        Ok(())
    }

    async fn mirror_rest(&self) -> Result<()> {
        let entries = self.mirror().entries().await?.into_iter();
        let mut mirrored: BTreeMap<String, Bytes> = entries
            .filter_map(|entry| Some((entry.key, entry.value?)))
            .collect();
        for name in self.store.list_dirs(&layout::policies()).await? {
            let version = match newest(&self.store, &name).await {
                Ok(Some((_, version))) if version.policy.is_some() => version,
                Ok(_) | Err(Error::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            let bytes = togi_common::canonical::json(&version)?;
            if mirrored.remove(&name).is_none_or(|found| found != bytes) {
                self.mirror().put(&name, bytes).await?;
            }
        }
        for gone in mirrored.keys() {
            self.mirror().delete(gone).await?;
        }
        Ok(())
    }

    /// Checks a policy and stores it; the same body again changes nothing.
    ///
    /// # Errors
    /// The field at fault; the store's.
    pub(crate) async fn apply(&self, body: Body) -> Result<Policy> {
        self.check(&body).await?;
        loop {
            let newest = newest(&self.store, &body.name).await?;
            let mut next = 1;
            if let Some((n, version)) = newest {
                if version.policy.as_ref() == Some(&body) {
                    return version.into_policy(n).ok_or_else(|| unknown(&body.name));
                }
                next = n + 1;
            }
            let seen = dataset::newest(&self.store, &body.dataset)
                .await?
                .map_or(0, |(n, _)| n);
            let version = Version {
                policy: Some(body.clone()),
                seen,
                since: Some(Timestamp::now()),
            };
            if self.write(&body.name, next, &version).await? {
                return version.into_policy(next).ok_or_else(|| unknown(&body.name));
            }
        }
    }

    /// Returns a policy.
    ///
    /// # Errors
    /// `NotFound` with field `name`; the store's.
    pub(crate) async fn get(&self, name: &str) -> Result<Policy> {
        layout::validate_name("name", name)?;
        let found = Policy::in_force(&self.store, name).await?;
        match found {
            Some(policy) => Ok(policy),
            None => Err(self.unknown(name).await),
        }
    }

    async fn unknown(&self, name: &str) -> Error {
        let near = self.store.nearest(&layout::policies(), name).await;
        let message = format!("policy {name:?} does not exist{near}");
        let unknown = togi_runtime::Error::not_found(message);
        unknown.with_field("name").into()
    }

    /// Returns the policies in force, ordered by name. One that cannot be read is logged and left
    /// out.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn list(&self) -> Result<Vec<Policy>> {
        let mut policies = Vec::new();
        for name in self.store.list_dirs(&layout::policies()).await? {
            match Policy::in_force(&self.store, &name).await {
                Ok(policy) => policies.extend(policy),
                Err(error @ Error::Damaged { .. }) => {
                    warn!(policy = name, %error, "a policy is passed over")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(policies)
    }

    /// Ends a policy. Its jobs go on.
    ///
    /// # Errors
    /// `NotFound` with field `name`; the store's.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        layout::validate_name("name", name)?;
        loop {
            let found = newest(&self.store, name).await?;
            let Some((n, version)) = found.filter(|(_, version)| version.policy.is_some()) else {
                return Err(self.unknown(name).await);
            };
            let ended = Version {
                policy: None,
                ..version
            };
            if self.write(name, n + 1, &ended).await? {
                return Ok(());
            }
        }
    }

    async fn check(&self, body: &Body) -> Result<()> {
        layout::validate_name("policy.name", &body.name)?;
        layout::validate_name("policy.dataset", &body.dataset)?;
        layout::validate_name("policy.alias", &body.alias)?;
        self.admission.check_form(&request(body, String::new()))?;
        self.admission.check_gate(&body.gate, &body.dataset).await?;
        if let Some(schedule) = &body.trigger.schedule {
            Schedule::parse(schedule)?;
        }
        Ok(())
    }

    async fn write(&self, name: &str, n: u64, version: &Version) -> Result<bool> {
        let bytes = togi_common::canonical::json(version)?;
        let written = self
            .store
            .put_revision(&layout::policy_revisions(name), n, bytes.clone().into())
            .await?;
        if written {
            let mirrored = async {
                match version.policy {
                    Some(_) => self.mirror().put(name, bytes).await.map(|_| ()),
                    None => self.mirror().delete(name).await,
                }
            };
            if let Err(error) = self.bus.in_a_moment(mirrored).await {
                self.bus.leave_undone();
                warn!(
                    policy = name,
                    error = error.chain(),
                    "the bucket of policies is updated later; the store has the change"
                );
            }
        }
        Ok(written)
    }
}

/// Resolves a request: one that names a policy trains the newest revision of the policy's data set.
///
/// # Errors
/// `NotFound` with field `policy`, or with `dataset` if the data set has no revision; the store's.
pub(crate) async fn resolve(store: &Store, asked: &Asked) -> Result<Resolved> {
    let (name, key) = match asked {
        Asked::Parts(request) => {
            return Ok(Resolved {
                request: CreateJob::clone(request),
                origin: None,
            });
        }
        Asked::Policy {
            policy,
            idempotency_key,
        } => (policy, idempotency_key),
    };
    let Some(policy) = Policy::in_force(store, name).await? else {
        let near = store.nearest(&layout::policies(), name).await;
        let message = format!("policy {name:?} does not exist{near}");
        let unknown = togi_runtime::Error::not_found(message);
        return Err(unknown.with_field("policy").into());
    };
    let Some((revision, named)) = dataset::newest(store, &policy.body.dataset).await? else {
        return Err(dataset::unknown(store, &policy.body.dataset).await);
    };
    let mut resolved = policy.resolve(named.dataset, revision, By::Request);
    resolved.request.idempotency_key.clone_from(key);
    Ok(resolved)
}

async fn newest(store: &Store, name: &str) -> Result<Option<(u64, Version)>> {
    let revisions = layout::policy_revisions(name);
    let Some((n, path)) = store.newest_revision(&revisions).await? else {
        return Ok(None);
    };
    let bytes = store.get(&path).await?;
    let version =
        serde_json::from_slice(&bytes).map_err(|error| Error::damaged(path.to_string(), error))?;
    Ok(Some((n, version)))
}

fn request(body: &Body, dataset: String) -> CreateJob {
    CreateJob {
        base: body.base.clone(),
        dataset,
        recipe: body.recipe.clone(),
        alias: body.alias.clone(),
        gate: Some(body.gate.clone()),
        idempotency_key: String::new(),
        policy: None,
    }
}

fn unknown(name: &str) -> Error {
    togi_runtime::Error::not_found(format!("policy {name:?} does not exist"))
        .with_field("name")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version as the store has it: its spelling never changes.
    const STORED: &str = concat!(
        r#"{"policy":{"alias":"kana","base":"tiny","dataset":"questions","#,
        r#""gate":{"answerTolerance":0.05,"leastRight":0.0,"lossTolerance":0.05,"#,
        r#""maxNewTokens":64},"name":"nightly","#,
        r#""recipe":{"accumulation":1,"adamBeta1":0.9,"adamBeta2":0.999,"adamEpsilon":1e-8,"#,
        r#""basePrecision":"f32","batchSize":4,"checkpointEvery":"100","epochs":1,"#,
        r#""learningRate":0.0002,"lora":{"alpha":32.0,"dropout":0.1,"rank":8,"#,
        r#""targetModules":["query_key_value"]},"maxGradientNorm":1.0,"#,
        r#""maxSteps":"7","promote":"auto","seed":"42","#,
        r#""shuffle":true,"warmupSteps":"0","weightDecay":0.0},"#,
        r#""trigger":{"newRevision":false,"schedule":"30 3 * * *"}},"#,
        r#""seen":3,"since":"2026-01-01T02:30:00Z"}"#,
    );

    fn written(version: &Version) -> String {
        String::from_utf8(togi_common::canonical::json(version).unwrap()).unwrap()
    }

    #[test]
    fn a_stored_policy_keeps_its_spelling() {
        let version: Version = serde_json::from_str(STORED).unwrap();
        assert_eq!(written(&version), STORED);
        let by_revision = STORED
            .replace(r#""newRevision":false,"#, r#""newRevision":true"#)
            .replace(r#""schedule":"30 3 * * *""#, "");
        let version: Version = serde_json::from_str(&by_revision).unwrap();
        assert_eq!(written(&version), by_revision);
        let ended = r#"{"policy":null,"seen":3,"since":null}"#;
        let version: Version = serde_json::from_str(ended).unwrap();
        assert_eq!(written(&version), ended);
    }

    #[test]
    fn a_policy_of_before_gates_and_triggers_has_the_defaults() {
        let stored = concat!(
            r#"{"policy":{"alias":"kana","base":"tiny","dataset":"questions","#,
            r#""name":"nightly","recipe":{"epochs":2}},"seen":3}"#,
        );
        let version: Version = serde_json::from_str(stored).unwrap();
        let policy = version.into_policy(1).unwrap();
        let time = policy.time(Timestamp::MIN).unwrap();
        assert!(policy.body.trigger.new_revision);
        assert!(!time.is_over(4) && time.is_over(3) && policy.since.is_none());
    }
}
