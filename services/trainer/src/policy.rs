//! Policies as objects: `policies/<name>/<n>.json`, create-if-absent, the highest n counts. The bucket `togi_policies` mirrors
//! them for whoever watches NATS; nothing here reads it.
//!
//! A policy looks forward: it keeps the newest revision of its data set at the time when it was applied, and trains only what
//! comes after. A data set that nobody has prepared yet is at revision 0, so that its first revision trains.

use serde::{Deserialize, Serialize};
use togi_proto::trainer::v1 as proto;
use togi_runtime::{Store, kv::Kv, layout};
use tracing::warn;

use crate::{
    dataset,
    error::{Error, Result},
    recipe::Recipe,
    submission::Desk,
};

/// A version of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    /// The policy; nothing once it is deleted.
    policy: Option<proto::Policy>,
    /// Newest revision of the data set's name when this version was applied.
    seen: u64,
}

/// A policy that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its body, the recipe complete.
    pub body: proto::Policy,
    /// Its version, from 1; a deletion is a version too.
    pub version: u64,
    /// Revisions of the data set up to this one do not train.
    pub seen: u64,
}

/// The policies.
#[derive(Clone)]
pub struct Policies {
    store: Store,
    mirror: Kv,
    desk: Desk,
}

impl Policies {
    /// Returns the policies in the store; `mirror` is told of every change.
    #[must_use]
    pub fn new(store: Store, mirror: Kv, desk: Desk) -> Policies {
        Policies {
            store,
            mirror,
            desk,
        }
    }

    /// Checks a policy and keeps it; the same body again changes nothing.
    ///
    /// # Errors
    /// The field at fault; the store's.
    pub async fn apply(&self, policy: proto::Policy) -> Result<Policy> {
        let body = self.check(policy)?;
        loop {
            let newest = self.newest(&body.name).await?;
            let mut next = 1;
            if let Some((n, version)) = newest {
                if version.policy.as_ref() == Some(&body) {
                    return Ok(Policy {
                        body,
                        version: n,
                        seen: version.seen,
                    });
                }
                next = n + 1;
            }
            let seen = dataset::newest(&self.store, &body.dataset)
                .await?
                .map_or(0, |(n, _)| n);
            if self
                .write(
                    &body.name,
                    next,
                    &Version {
                        policy: Some(body.clone()),
                        seen,
                    },
                )
                .await?
            {
                return Ok(Policy {
                    body,
                    version: next,
                    seen,
                });
            }
        }
    }

    /// Returns a policy.
    ///
    /// # Errors
    /// `NotFound` with field `name`; the store's.
    pub async fn get(&self, name: &str) -> Result<Policy> {
        layout::validate_name("name", name)?;
        match self.newest(name).await? {
            Some((
                version,
                Version {
                    policy: Some(body),
                    seen,
                },
            )) => Ok(Policy {
                body,
                version,
                seen,
            }),
            _ => Err(unknown(name)),
        }
    }

    /// Returns the policies in force, ordered by name. One that cannot be read is passed over, aloud: it stops no other.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self) -> Result<Vec<Policy>> {
        let mut policies = Vec::new();
        for name in self.store.list_dirs(&layout::policies()).await? {
            match self.newest(&name).await {
                Ok(Some((
                    version,
                    Version {
                        policy: Some(body),
                        seen,
                    },
                ))) => {
                    policies.push(Policy {
                        body,
                        version,
                        seen,
                    });
                }
                Ok(_) => {}
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
            let Some((
                n,
                Version {
                    policy: Some(_),
                    seen,
                },
            )) = self.newest(name).await?
            else {
                return Err(unknown(name));
            };
            if self
                .write(name, n + 1, &Version { policy: None, seen })
                .await?
            {
                return Ok(());
            }
        }
    }

    fn check(&self, policy: proto::Policy) -> Result<proto::Policy> {
        layout::validate_name("policy.name", &policy.name)?;
        layout::validate_name("policy.dataset", &policy.dataset)?;
        layout::validate_name("policy.alias", &policy.alias)?;
        let recipe: Recipe =
            self.desk
                .check_form(&request(&policy, String::new(), String::new()))?;
        Ok(proto::Policy {
            recipe: Some(recipe.to_proto()),
            ..policy
        })
    }

    async fn newest(&self, name: &str) -> Result<Option<(u64, Version)>> {
        let Some((n, path)) = self
            .store
            .newest_revision(&layout::policy_revisions(name))
            .await?
        else {
            return Ok(None);
        };
        let bytes = self.store.get(&path).await?;
        let version = serde_json::from_slice(&bytes)
            .map_err(|error| Error::damaged(path.to_string(), error))?;
        Ok(Some((n, version)))
    }

    async fn write(&self, name: &str, n: u64, version: &Version) -> Result<bool> {
        let bytes = togi_runtime::store::canonical_json(version)?;
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
                    "the bucket of policies was not told; the store has it"
                );
            }
        }
        Ok(written)
    }
}

/// Returns the request that a policy makes for a data set.
#[must_use]
pub fn request(
    policy: &proto::Policy,
    dataset: String,
    idempotency_key: String,
) -> proto::CreateJobRequest {
    proto::CreateJobRequest {
        base: policy.base.clone(),
        dataset,
        recipe: policy.recipe.clone(),
        alias: policy.alias.clone(),
        idempotency_key,
        validate_only: false,
    }
}

fn unknown(name: &str) -> Error {
    togi_runtime::Error::not_found(format!("policy {name:?} does not exist"))
        .with_field("name")
        .into()
}
