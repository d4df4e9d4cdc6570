//! Policies as objects: `policies/<name>/<n>.json`, create-if-absent, the highest n counts. The
//! bucket `togi_policies` mirrors them for watchers of NATS; nothing here reads it.
//!
//! A policy looks forward: it keeps the newest revision of its data set at the time when it was
//! applied, and trains only what comes after, or what its schedule asks for. A data set that nobody
//! has prepared yet is at revision 0, so that its first revision trains.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use togi_proto::trainer::v1 as proto;
use togi_runtime::bus::kv::Kv;
use togi_runtime::registry::revisions::NameRevision;
use togi_runtime::{Store, layout};
use tracing::warn;

use crate::dataset;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::policies::schedule::Schedule;
use crate::recipe::Recipe;
use crate::request::{By, Origin, Resolved};
use crate::submission::{Admission, check_key};

/// A version of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    /// The policy; nothing once it is deleted.
    policy: Option<proto::Policy>,
    /// Newest revision of the data set's name when this version was applied.
    seen: u64,
    /// When it was applied: its schedule begins there.
    #[serde(default)]
    since: Option<Timestamp>,
}

/// A policy that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its body, recipe, trigger and gate complete.
    pub body: proto::Policy,
    /// Its version, from 1; a deletion is a version too.
    pub version: u64,
    /// New revisions of the data set are those after this one.
    pub seen: u64,
    /// When it was applied.
    pub since: Option<Timestamp>,
}

/// Which revisions' time has come; to be asked from the newest to the oldest.
#[derive(Debug)]
pub struct Time {
    new_revision: bool,
    seen: u64,
    /// The schedule's last time, if there was one.
    scheduled: Option<Timestamp>,
    /// The newest revision of that time was passed.
    passed: bool,
}

impl Time {
    /// Whether this revision's time has come.
    pub fn has_come(&mut self, revision: u64, named: &NameRevision) -> bool {
        let is_new = revision > self.seen;
        let was_there = |scheduled: Timestamp| {
            let made = named.time.parse::<Timestamp>();
            made.is_ok_and(|made| made <= scheduled)
        };
        if self.scheduled.is_some_and(was_there) {
            let newest = !self.passed;
            self.passed = true;
            return newest || is_new;
        }
        self.new_revision && is_new
    }

    /// Whether neither this revision's time nor an older one's comes.
    #[must_use]
    pub fn is_over(&self, revision: u64) -> bool {
        revision <= self.seen && (self.scheduled.is_none() || self.passed)
    }
}

impl Policy {
    /// Returns a policy, if it is in force.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its newest version cannot be parsed; the store's.
    pub async fn in_force(store: &Store, name: &str) -> Result<Option<Policy>> {
        let found = newest(store, name).await?;
        Ok(found.and_then(|(version, found)| found.into_policy(version)))
    }

    /// Returns the policy's request to train a revision of its data set.
    #[must_use]
    pub fn resolve(&self, dataset: String, revision: u64, by: By) -> Resolved {
        let policy = self.body.name.clone();
        let request = proto::CreateJobRequest {
            policy: policy.clone(),
            ..request(&self.body, dataset)
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
    pub fn time(&self, now: Timestamp) -> Result<Time> {
        let trigger = self.body.trigger.clone().unwrap_or_default();
        let scheduled = match (trigger.schedule.as_str(), self.since) {
            ("", _) | (_, None) => None,
            (schedule, Some(since)) => Schedule::parse(schedule)?.last(since, now),
        };
        Ok(Time {
            new_revision: trigger.new_revision.unwrap_or(trigger.schedule.is_empty()),
            seen: self.seen,
            scheduled,
            passed: false,
        })
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
pub struct Policies {
    store: Store,
    mirror: Kv,
    admission: Admission,
}

impl Policies {
    /// Returns the policies in the store; `mirror` gets every change.
    #[must_use]
    pub fn new(store: Store, mirror: Kv, admission: Admission) -> Policies {
        Policies {
            store,
            mirror,
            admission,
        }
    }

    /// Checks a policy and keeps it; the same body again changes nothing.
    ///
    /// # Errors
    /// The field at fault; the store's.
    pub async fn apply(&self, policy: proto::Policy) -> Result<Policy> {
        let body = self.check(policy).await?;
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
    pub async fn get(&self, name: &str) -> Result<Policy> {
        layout::validate_name("name", name)?;
        let found = Policy::in_force(&self.store, name).await?;
        found.ok_or_else(|| unknown(name))
    }

    /// Returns the policies in force, ordered by name. One that cannot be read is passed over,
    /// aloud: it stops no other.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self) -> Result<Vec<Policy>> {
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

    /// Ends a policy. Jobs that it has started go on.
    ///
    /// # Errors
    /// `NotFound` with field `name`; the store's.
    pub async fn delete(&self, name: &str) -> Result<()> {
        layout::validate_name("name", name)?;
        loop {
            let found = newest(&self.store, name).await?;
            let Some((n, version)) = found.filter(|(_, version)| version.policy.is_some()) else {
                return Err(unknown(name));
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

    async fn check(&self, policy: proto::Policy) -> Result<proto::Policy> {
        layout::validate_name("policy.name", &policy.name)?;
        layout::validate_name("policy.dataset", &policy.dataset)?;
        layout::validate_name("policy.alias", &policy.alias)?;
        let recipe: Recipe = self
            .admission
            .check_form(&request(&policy, String::new()))?;
        let gate = Gate::from_proto(&policy.gate.clone().unwrap_or_default())?;
        self.admission.check_gate(&gate, &policy.dataset).await?;
        let mut trigger = policy.trigger.clone().unwrap_or_default();
        if !trigger.schedule.is_empty() {
            Schedule::parse(&trigger.schedule)?;
        }
        let by_schedule = !trigger.schedule.is_empty();
        trigger.new_revision = Some(trigger.new_revision.unwrap_or(!by_schedule));
        Ok(proto::Policy {
            recipe: Some(recipe.to_proto()),
            trigger: Some(trigger),
            gate: Some(gate.to_proto()),
            ..policy
        })
    }

    async fn write(&self, name: &str, n: u64, version: &Version) -> Result<bool> {
        let bytes = togi_common::canonical::json(version)?;
        let written = self
            .store
            .put_revision(&layout::policy_revisions(name), n, bytes.clone().into())
            .await?;
        if written {
            let mirrored = match version.policy {
                Some(_) => self.mirror.put(name, bytes).await.map(|_| ()),
                None => self.mirror.delete(name).await,
            };
            if let Err(error) = mirrored {
                warn!(
                    policy = name,
                    error = error.chain(),
                    "the bucket of policies was not updated; the store has the change"
                );
            }
        }
        Ok(written)
    }
}

/// Resolves a request: one that names a policy trains the newest revision of the policy's data set.
///
/// # Errors
/// [`Error::Invalid`] with a field that only the policy may set; `NotFound` with field `policy`, or
/// with `dataset` if the data set has no revision; the store's.
pub(crate) async fn resolve(store: &Store, asked: &proto::CreateJobRequest) -> Result<Resolved> {
    if asked.policy.is_empty() {
        return Ok(Resolved {
            request: asked.clone(),
            origin: None,
        });
    }
    check_alone(asked)?;
    let unknown = || {
        let message = format!("policy {:?} does not exist", asked.policy);
        togi_runtime::Error::not_found(message).with_field("policy")
    };
    let found = Policy::in_force(store, &asked.policy).await?;
    let policy = found.ok_or_else(unknown)?;
    let name = &policy.body.dataset;
    let Some((revision, named)) = dataset::newest(store, name).await? else {
        return Err(dataset::unknown(name));
    };
    let mut resolved = policy.resolve(named.dataset, revision, By::Request);
    resolved
        .request
        .idempotency_key
        .clone_from(&asked.idempotency_key);
    Ok(resolved)
}

/// Checks that a request which names a policy sets nothing that the policy sets.
///
/// # Errors
/// [`Error::Invalid`] with the first field that is set.
pub(crate) fn check_alone(asked: &proto::CreateJobRequest) -> Result<()> {
    check_key(asked)?;
    layout::validate_name("policy", &asked.policy)?;
    let set = [
        ("base", !asked.base.is_empty()),
        ("dataset", !asked.dataset.is_empty()),
        ("recipe", asked.recipe.is_some()),
        ("alias", !asked.alias.is_empty()),
        ("gate", asked.gate.is_some()),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Error::invalid(field, "is the policy's to say")),
        None => Ok(()),
    }
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

/// A policy that was written before there were gates has one all the same.
fn request(policy: &proto::Policy, dataset: String) -> proto::CreateJobRequest {
    proto::CreateJobRequest {
        base: policy.base.clone(),
        dataset,
        recipe: policy.recipe.clone(),
        alias: policy.alias.clone(),
        gate: Some(policy.gate.clone().unwrap_or_default()),
        ..Default::default()
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

    fn named(time: &str) -> NameRevision {
        NameRevision {
            name: "d".into(),
            dataset: "x".into(),
            time: time.into(),
            traceparent: None,
            job: None,
        }
    }

    /// Revisions whose time has come, newest first; revision n was made at n o'clock.
    fn due(new_revision: bool, schedule: &str, seen: u64, now: &str) -> Vec<u64> {
        let trigger = proto::Trigger {
            new_revision: Some(new_revision),
            schedule: schedule.into(),
        };
        let policy = Policy {
            body: proto::Policy {
                trigger: Some(trigger),
                ..Default::default()
            },
            version: 1,
            seen,
            since: Some("2026-01-01T02:30:00Z".parse().unwrap()),
        };
        let mut time = policy.time(now.parse().unwrap()).unwrap();
        let mut due = Vec::new();
        for revision in (1..=5).rev() {
            if time.is_over(revision) {
                break;
            }
            if time.has_come(revision, &named(&format!("2026-01-01T0{revision}:00:00Z"))) {
                due.push(revision);
            }
        }
        due
    }

    #[test]
    fn new_revisions_come_at_once_and_scheduled_ones_at_their_time() {
        let (early, late) = ("2026-01-01T03:29:00Z", "2026-01-01T05:10:00Z");
        let every_hour = "30 * * * *";
        // Applied at half past two, after revision 2.
        assert_eq!(due(true, "", 2, early), [5, 4, 3]);
        assert!(due(false, "", 2, early).is_empty());
        assert!(due(false, every_hour, 2, early).is_empty(), "not yet");
        // At half past four revisions 3 and 4 were there, and no other is new.
        assert_eq!(due(false, every_hour, 2, late), [4, 3]);
        assert_eq!(due(true, every_hour, 2, late), [5, 4, 3]);
        // Nothing new was there, but what there was had not been tried.
        assert_eq!(due(false, every_hour, 5, late), [4]);
    }

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
        assert!(time.new_revision && policy.since.is_none());
    }
}
