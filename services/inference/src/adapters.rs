//! Adapters over the base: what is declared ([`follower`]) becomes what is served, one load at a
//! time ([`plan`] says which), and requests find their generation here.

pub(crate) mod announcer;
pub(crate) mod follower;
mod loader;
pub(crate) mod mismatch;
mod plan;
pub(crate) mod served;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use togi_runtime::registry::revisions::BaseMismatch;
use togi_runtime::{Class, Stopper, telemetry};
use tokio::sync::{Mutex, mpsc, watch};
use tracing::Instrument;

pub(crate) use self::loader::{Expected, Loader};
use self::plan::{Declaration, Declared, Deferred, Step, next_step, still_says};
use self::served::{Refusal, Serving, Shelf};
use crate::adapters::announcer::News;
use crate::engine::request::Answerer;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::semconv;
use crate::served_adapter::ServedAdapter;

/// First delay before a load is tried again that failed for a reason that may pass; it doubles up
/// to the reconcile period.
const RETRY: Duration = Duration::from_secs(1);
/// Longest reason in an event: a file can have any number of unknown tensors.
const MAX_REASON_CHARS: usize = 1000;

/// The adapters of one replica.
pub(crate) struct Adapters {
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) loader: Arc<Loader>,
    /// None until the store's aliases have been read once.
    pub(crate) declared: Arc<watch::Sender<Option<Declared>>>,
    pub(crate) news: mpsc::Sender<News>,
    pub(crate) metrics: Metrics,
    pub(crate) replica: String,
    pub(crate) load_timeout: Duration,
    pub(crate) retry_period: Duration,
    /// Held while a generation is loaded: one at a time, so that memory and disk are bounded.
    pub(crate) load_lock: Mutex<()>,
}

impl Adapters {
    /// Returns the generation that a request is pinned to; None for the base alone.
    ///
    /// # Errors
    /// `NotFound` for a name that nothing declares, `Unavailable` while what it names is still
    /// loading, `FailedPrecondition` when that was refused.
    pub(crate) async fn resolve(&self, answerer: &Answerer) -> Result<Option<Arc<ServedAdapter>>> {
        match answerer {
            Answerer::Base => Ok(None),
            Answerer::Alias(alias) => self.by_alias(alias).map(Some),
            Answerer::Generation(digest) => self.by_digest(digest).await.map(Some),
        }
    }

    fn by_alias(&self, alias: &str) -> Result<Arc<ServedAdapter>> {
        let served = self.shelf.served();
        if let Some(serving) = served.aliases.get(alias) {
            return Ok(serving.generation.clone());
        }
        if let Some(refusal) = served.refused.get(alias) {
            return Err(Error::Refused {
                name: alias.to_owned(),
                generation: refusal.generation.clone(),
                reason: refusal.reason.clone(),
            });
        }
        let is_known = match &*self.declared.borrow() {
            Some(declared) => declared.contains_key(alias),
            None => true, // Nobody can tell yet.
        };
        Err(if is_known {
            Error::StillLoading(alias.to_owned())
        } else {
            Error::UnknownAdapter(alias.to_owned())
        })
    }

    async fn by_digest(&self, digest: &str) -> Result<Arc<ServedAdapter>> {
        match self.get(digest, self.base_mismatch(digest), false).await {
            Ok(generation) => {
                self.shelf.keep(&generation);
                Ok(generation)
            }
            Err(Error::BadAdapter(reason) | Error::BrokenAdapter(reason)) => Err(Error::Refused {
                name: digest.to_owned(),
                generation: digest.to_owned(),
                reason,
            }),
            Err(error) => Err(error),
        }
    }

    /// What the promotions say of a generation that is asked for by its digest: one that allows a
    /// mismatch is enough.
    fn base_mismatch(&self, digest: &str) -> BaseMismatch {
        let declared = self.declared.borrow();
        let mut declarations = declared.iter().flat_map(Declared::values);
        let is_allowed = declarations.any(|declaration| {
            declaration.generation == digest && !declaration.base_mismatch.is_refused()
        });
        is_allowed.into()
    }

    /// Returns a generation, from memory or from the store.
    async fn get(
        &self,
        digest: &str,
        base_mismatch: BaseMismatch,
        replaces: bool,
    ) -> Result<Arc<ServedAdapter>> {
        if let Some(generation) = self.shelf.find(digest) {
            // It may be in memory for an alias that says something else.
            self.loader
                .admit(generation.trained_over(), base_mismatch)?;
            return Ok(generation);
        }
        let load = async {
            let _one_at_a_time = self.load_lock.lock().await;
            if let Some(generation) = self.shelf.find(digest) {
                self.loader
                    .admit(generation.trained_over(), base_mismatch)?;
                return Ok(generation);
            }
            if !self.shelf.make_room(replaces) {
                return Err(Error::TooManyResident(self.shelf.count()));
            }
            let generation = self.loader.load(digest, base_mismatch).await?;
            self.shelf.put(&generation);
            Ok(generation)
        };
        let late = |_| Error::LoadTimeout(self.load_timeout);
        tokio::time::timeout(self.load_timeout, load)
            .await
            .map_err(late)?
    }

    /// Brings what is served to what is declared, again and again, until the stop. `caught_up` is
    /// called once, when everything that was declared at the start has been tried.
    pub(crate) async fn keep_up(&self, stopper: &Stopper, caught_up: impl FnOnce()) {
        let mut changes = self.declared.subscribe();
        let mut deferred = Deferred::new();
        let mut caught_up = Some(caught_up);
        while !stopper.is_stopped() {
            let declared = changes.borrow_and_update().clone();
            let step = match &declared {
                Some(declared) => {
                    let served = self.shelf.served();
                    next_step(declared, &served, &deferred, Instant::now())
                }
                None => Step::Wait(None),
            };
            match (step, declared) {
                (Step::Load(alias), Some(declared)) => {
                    let serve = self.serve(&alias, &declared[&alias], &mut deferred);
                    stopper.run(serve).await;
                }
                (Step::Drop(alias), _) => self.drop_alias(&alias),
                (Step::Wait(until), declared) => {
                    if declared.is_some() {
                        caught_up.take().into_iter().for_each(|tell| tell());
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
                    }
                }
                (Step::Load(_), None) => {}
            }
        }
    }

    fn drop_alias(&self, alias: &str) {
        tracing::info!(alias, "alias is declared no more");
        self.shelf.change(|served| {
            served.aliases.remove(alias);
            served.refused.remove(alias);
        });
    }

    /// Loads what an alias names and lets the alias serve it, in one change.
    async fn serve(&self, alias: &str, declaration: &Declaration, deferred: &mut Deferred) {
        let span = tracing::info_span!(
            "load adapter",
            { semconv::ALIAS } = alias,
            { semconv::GENERATION } = declaration.generation,
            { semconv::REVISION } = declaration.revision,
            { semconv::REPLICA } = self.replica,
            { semconv::OUTCOME } = tracing::field::Empty,
        );
        let span = match &declaration.traceparent {
            Some(parent) => telemetry::span_with_parent(span, parent),
            None => span,
        };
        let replaces = self.shelf.served().aliases.contains_key(alias);
        let result = self
            .get(&declaration.generation, declaration.base_mismatch, replaces)
            .instrument(span.clone())
            .await;
        let still_says = still_says(self.declared.borrow().as_ref(), alias, declaration);
        let outcome = span.in_scope(|| match result {
            _ if !still_says => {
                let generation = &declaration.generation;
                tracing::info!(
                    alias,
                    generation,
                    "the alias was moved while this was loaded"
                );
                "overtaken"
            }
            Ok(generation) => {
                deferred.remove(alias);
                self.loaded(alias, declaration, generation);
                "loaded"
            }
            Err(error) => self.failed(alias, declaration, &error, deferred),
        });
        span.record(semconv::OUTCOME, outcome);
        self.metrics
            .load_ended(outcome, declaration.heard.elapsed().as_secs_f64());
    }

    fn loaded(&self, alias: &str, declaration: &Declaration, generation: Arc<ServedAdapter>) {
        let mismatched = (!self.loader.holds_base_of(&generation)).then(|| Arc::clone(&generation));
        let serving = Serving {
            generation,
            revision: declaration.revision,
            since: SystemTime::now(),
        };
        self.shelf.change(|served| {
            served.refused.remove(alias);
            served.aliases.insert(alias.to_owned(), serving);
        });
        let seconds = declaration.heard.elapsed().as_secs_f64();
        let generation = &declaration.generation;
        tracing::info!(
            alias,
            generation,
            revision = declaration.revision,
            seconds,
            "adapter serves"
        );
        self.tell(News::Loaded {
            alias: alias.to_owned(),
            generation: generation.clone(),
            mismatched,
            traceparent: telemetry::current_traceparent(),
        });
    }

    /// A load failed: refuses what cannot be served, puts off what may be served later. Returns the
    /// outcome's word.
    fn failed(
        &self,
        alias: &str,
        declaration: &Declaration,
        error: &Error,
        deferred: &mut Deferred,
    ) -> &'static str {
        let verdict = Verdict::of(error);
        if verdict != Verdict::Refused {
            let delay = deferred
                .get(alias)
                .map_or(RETRY, |last| (last.delay * 2).min(self.retry_period));
            let again = plan::Again::after(declaration.revision, delay);
            deferred.insert(alias.to_owned(), again);
        }
        let generation = &declaration.generation;
        if verdict == Verdict::Deferred {
            tracing::warn!(alias, generation, %error, "adapter is not loaded yet");
            return "deferred";
        }
        let refusal = Refusal {
            generation: generation.clone(),
            revision: declaration.revision,
            reason: error.to_string().chars().take(MAX_REASON_CHARS).collect(),
            is_final: verdict == Verdict::Refused,
        };
        if self.shelf.served().refused.get(alias) != Some(&refusal) {
            tracing::warn!(alias, generation, %error, "adapter refused");
            let reason = refusal.reason.clone();
            self.shelf.change(|served| {
                served.refused.insert(alias.to_owned(), refusal);
            });
            self.tell(News::Rejected {
                alias: alias.to_owned(),
                generation: generation.clone(),
                reason,
                traceparent: telemetry::current_traceparent(),
            });
        }
        "rejected"
    }

    fn tell(&self, news: News) {
        // Events are hints: with the bus away for long, the oldest news are the ones worth keeping.
        if self.news.try_send(news).is_err() {
            tracing::warn!("too much news waits for the bus; one is left out");
        }
    }
}

/// What a failed load means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Refused for good: objects never change.
    Refused,
    /// Refused, and tried again: somebody may bring the missing bytes, or make room.
    RefusedForNow,
    /// Nothing is said about the adapter: the store did not answer.
    Deferred,
}

impl Verdict {
    fn of(error: &Error) -> Verdict {
        match error.class() {
            Class::FailedPrecondition | Class::InvalidArgument => Verdict::Refused,
            Class::DataLoss | Class::NotFound | Class::ResourceExhausted => Verdict::RefusedForNow,
            _ => Verdict::Deferred,
        }
    }
}
