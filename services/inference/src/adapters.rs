//! The adapters of a replica. It serves what is declared ([`follower`]) in the order of [`plan`],
//! finds the generation of each request, and gets it onto the device ([`tiers`]).

pub(crate) mod announcer;
pub(crate) mod follower;
mod loader;
pub(crate) mod mismatch;
mod plan;
pub(crate) mod served;
pub(crate) mod tiers;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use togi_common::{AliasName, Generation, nearest};
use togi_runtime::life::backoff::Backoff;
use togi_runtime::registry::revisions::BaseMismatch;
use togi_runtime::{Class, Stopper, telemetry};
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

pub(crate) use self::loader::{Expected, Loader};
use self::plan::{
    Action, Again, Declaration, Declared, Deferred, Loading, is_current, next_action,
};
use self::served::{Refusal, Serving, Shelf};
use self::tiers::{Found, Tiers};
use crate::adapters::announcer::News;
use crate::engine::request::Answerer;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::pool::ReadyAdapter;
use crate::semconv;
use crate::served_adapter::ServedAdapter;

/// First wait before a load is repeated that failed for a reason that may pass. It doubles up to
/// the reconcile period.
const RETRY: Duration = Duration::from_secs(1);
/// Longest reason in an event: a file can have any number of unknown tensors.
const MAX_REASON_CHARS: usize = 1000;

/// The adapters of one replica.
pub(crate) struct Adapters {
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) tiers: Arc<Tiers>,
    /// None until the store's aliases have been read once.
    pub(crate) declared: Arc<watch::Sender<Option<Declared>>>,
    pub(crate) news: mpsc::Sender<News>,
    pub(crate) metrics: Metrics,
    pub(crate) replica: String,
    pub(crate) retry_period: Duration,
}

impl Adapters {
    /// Returns the generation that a request is pinned to, once it is on the device; None for the
    /// base alone.
    ///
    /// # Errors
    /// `NotFound` for a name that nothing declares, `Unavailable` while what it names is still
    /// loading, `FailedPrecondition` when that was refused, `ResourceExhausted` with a time to come
    /// back where the adapters in use leave no room.
    pub(crate) async fn resolve(&self, answerer: &Answerer) -> Result<Option<Arc<ReadyAdapter>>> {
        let (name, generation, ready) = match answerer {
            Answerer::Base => return Ok(None),
            Answerer::Alias(alias) => {
                let served = self.by_alias(alias)?;
                let generation = served.generation();
                let ready = self.tiers.wait_for(Found::from(served)).await;
                (alias.to_string(), generation, ready)
            }
            Answerer::Generation(generation) => {
                let ready = self.by_digest(*generation).await;
                (generation.to_string(), *generation, ready)
            }
        };
        ready.map(Some).map_err(|error| match error {
            Error::BadAdapter(reason) | Error::BrokenAdapter(reason) => Error::Refused {
                name,
                generation,
                reason,
            },
            error => error,
        })
    }

    fn by_alias(&self, alias: &AliasName) -> Result<Arc<ServedAdapter>> {
        let served = self.shelf.served();
        if let Some(serving) = served.aliases.get(alias) {
            return Ok(serving.adapter.clone());
        }
        if let Some(refusal) = served.refused.get(alias) {
            return Err(Error::Refused {
                name: alias.to_string(),
                generation: refusal.generation,
                reason: refusal.reason.clone(),
            });
        }
        let declared = self.declared.borrow();
        match &*declared {
            Some(declared) if !declared.contains_key(alias) => {
                let known = declared.keys().map(AliasName::as_str);
                let near = nearest::suggestion(alias.as_str(), known);
                Err(Error::UnknownAdapter {
                    name: alias.to_string(),
                    near,
                })
            }
            // If it is `None`, the store has not been read yet.
            _ => Err(Error::StillLoading {
                name: alias.to_string(),
                reason: served.deferred.get(alias).cloned(),
            }),
        }
    }

    async fn by_digest(&self, generation: Generation) -> Result<Arc<ReadyAdapter>> {
        let base_mismatch = self.base_mismatch(generation);
        let found = self.tiers.get(generation, base_mismatch).await?;
        self.tiers.wait_for(found).await
    }

    /// Whether a generation that is named by its digest may be served over another precision of its
    /// base: one promotion that allows it is enough.
    fn base_mismatch(&self, generation: Generation) -> BaseMismatch {
        let declared = self.declared.borrow();
        let mut declarations = declared.iter().flat_map(Declared::values);
        let is_allowed = declarations.any(|declaration| {
            declaration.generation == generation && !declaration.base_mismatch.is_refused()
        });
        is_allowed.into()
    }

    /// Serves what is declared until the stop. `caught_up` is called once, when every declaration
    /// of the start has been tried.
    pub(crate) async fn keep_up(&self, stopper: &Stopper, caught_up: impl FnOnce()) {
        let mut changes = self.declared.subscribe();
        let deferred = Mutex::new(Deferred::new());
        let (mut loading, mut loads) = (Loading::new(), FuturesUnordered::new());
        let mut caught_up = Some(caught_up);
        while !stopper.is_stopped() {
            let declared = changes.borrow_and_update().clone();
            let action = match &declared {
                Some(declared) => {
                    let (served, deferred) = (self.shelf.served(), deferred.lock());
                    next_action(declared, &served, (&deferred, &loading), Instant::now())
                }
                None => Action::Wait(None),
            };
            match (action, declared) {
                (Action::Load(alias), Some(declared)) => {
                    let declaration = declared[&alias].clone();
                    loading.insert((alias.clone(), declaration.revision));
                    let deferred = &deferred;
                    loads.push(async move {
                        self.serve(&alias, &declaration, deferred).await;
                        (alias, declaration.revision)
                    });
                }
                (Action::Drop(alias), _) => self.drop_alias(&alias),
                (Action::Wait(until), declared) => {
                    if declared.is_some() && loads.is_empty() {
                        caught_up.take().into_iter().for_each(|call| call());
                    }
                    let due = async {
                        match until {
                            Some(until) => tokio::time::sleep_until(until.into()).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = stopper.stopped() => {}
                        // The sender lives in `self`.
                        _ = changes.changed() => {}
                        () = due => {}
                        Some(ended) = loads.next() => {
                            loading.remove(&ended);
                        }
                    }
                }
                (Action::Load(_), None) => {}
            }
        }
    }

    fn drop_alias(&self, alias: &AliasName) {
        tracing::info!(%alias, "alias is declared no more");
        self.shelf.change(|served| {
            served.aliases.remove(alias);
            served.refused.remove(alias);
            served.deferred.remove(alias);
        });
    }

    /// Loads the generation that an alias names, and lets the alias serve it.
    async fn serve(
        &self,
        alias: &AliasName,
        declaration: &Declaration,
        deferred: &Mutex<Deferred>,
    ) {
        let span = tracing::info_span!(
            "load adapter",
            { semconv::ALIAS } = alias.as_str(),
            { semconv::GENERATION } = %declaration.generation,
            { semconv::REVISION } = declaration.revision,
            { semconv::REPLICA } = self.replica,
            { semconv::OUTCOME } = tracing::field::Empty,
        );
        let span = match &declaration.traceparent {
            Some(parent) => telemetry::span_with_parent(span, parent),
            None => span,
        };
        let result = self.load(alias, declaration).instrument(span.clone()).await;
        let still_says = is_current(self.declared.borrow().as_ref(), alias, declaration);
        let outcome = span.in_scope(|| match result {
            _ if !still_says => {
                let generation = declaration.generation;
                tracing::info!(
                    %alias,
                    %generation,
                    "the alias was moved while this was loaded"
                );
                "overtaken"
            }
            Ok((adapter, _ready)) => {
                deferred.lock().remove(alias);
                self.loaded(alias, declaration, adapter);
                "loaded"
            }
            Err(error) => self.failed(alias, declaration, &error, &mut deferred.lock()),
        });
        span.record(semconv::OUTCOME, outcome);
        self.metrics
            .load_ended(outcome, declaration.heard.elapsed().as_secs_f64());
    }

    /// Loads the generation that an alias names, and brings it onto the device, so that the first
    /// request finds it there. If another one must go for it, only where the alias serves already:
    /// at the start there may be more aliases than the device holds.
    async fn load(&self, alias: &AliasName, declaration: &Declaration) -> Result<Loaded> {
        let get = (self.tiers).get(declaration.generation, declaration.base_mismatch);
        let found = get.await?;
        let adapter = Arc::clone(&found.served);
        let replaces = self.shelf.served().aliases.contains_key(alias);
        if !replaces && !self.tiers.has_room(&adapter) {
            return Ok((adapter, None));
        }
        match self.tiers.ready(found).await {
            Ok(ready) => Ok((adapter, Some(ready))),
            Err(error) => {
                let generation = adapter.generation();
                tracing::info!(%alias, %generation, %error, "adapter is not on the device yet");
                Ok((adapter, None))
            }
        }
    }

    fn loaded(&self, alias: &AliasName, declaration: &Declaration, adapter: Arc<ServedAdapter>) {
        let holds_base = self.tiers.loader().holds_base_of(&adapter);
        let mismatched = (!holds_base).then(|| Arc::clone(&adapter));
        let serving = Serving {
            adapter,
            revision: declaration.revision,
            since: SystemTime::now(),
        };
        self.shelf.change(|served| {
            served.refused.remove(alias);
            served.deferred.remove(alias);
            served.aliases.insert(alias.clone(), serving);
        });
        let seconds = declaration.heard.elapsed().as_secs_f64();
        let generation = declaration.generation;
        tracing::info!(
            %alias,
            %generation,
            revision = declaration.revision,
            seconds,
            "adapter serves"
        );
        self.announce(News::Loaded {
            alias: alias.clone(),
            generation,
            mismatched,
            traceparent: telemetry::current_traceparent(),
        });
    }

    /// Refuses an adapter that cannot be served, and defers one whose load may succeed later.
    /// Returns the name of the outcome.
    fn failed(
        &self,
        alias: &AliasName,
        declaration: &Declaration,
        error: &Error,
        deferred: &mut Deferred,
    ) -> &'static str {
        let verdict = Verdict::of(error);
        if verdict != Verdict::Refused {
            let backoff = deferred.remove(alias).map_or_else(
                || Backoff::new(RETRY.min(self.retry_period), self.retry_period),
                |last| last.backoff,
            );
            let again = Again::after(declaration.revision, backoff);
            deferred.insert(alias.clone(), again);
        }
        let generation = declaration.generation;
        if verdict == Verdict::Deferred {
            tracing::warn!(%alias, %generation, %error, "adapter is not loaded yet");
            let reason = error.to_string();
            if self.shelf.served().deferred.get(alias) != Some(&reason) {
                self.shelf.change(|served| {
                    served.deferred.insert(alias.clone(), reason);
                });
            }
            return "deferred";
        }
        let refusal = Refusal {
            generation,
            revision: declaration.revision,
            reason: error.to_string().chars().take(MAX_REASON_CHARS).collect(),
            is_final: verdict == Verdict::Refused,
        };
        if self.shelf.served().refused.get(alias) != Some(&refusal) {
            tracing::warn!(%alias, %generation, %error, "adapter refused");
            let reason = refusal.reason.clone();
            self.shelf.change(|served| {
                served.refused.insert(alias.clone(), refusal);
            });
            self.announce(News::Rejected {
                alias: alias.clone(),
                generation,
                reason,
                traceparent: telemetry::current_traceparent(),
            });
        }
        "rejected"
    }

    fn announce(&self, news: News) {
        // Events are hints. If the bus is away for long, the oldest are kept.
        if self.news.try_send(news).is_err() {
            tracing::warn!("too much news waits for the bus; one is left out");
        }
    }
}

/// A loaded adapter, and its hold on the device if it is there.
type Loaded = (Arc<ServedAdapter>, Option<Arc<ReadyAdapter>>);

/// The consequence of a failed load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Refused finally: objects never change.
    Refused,
    /// Refused, and tried again: missing files may appear, or memory may become free.
    RefusedForNow,
    /// Tried again: the store did not answer.
    Deferred,
}

impl Verdict {
    fn of(error: &Error) -> Self {
        match error.class() {
            Class::FailedPrecondition | Class::InvalidArgument => Self::Refused,
            Class::DataLoss | Class::NotFound | Class::ResourceExhausted => Self::RefusedForNow,
            _ => Self::Deferred,
        }
    }
}
