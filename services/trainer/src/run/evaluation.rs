//! Evaluates a published adapter for its gate, stores the decision and publishes it. The first
//! stored decision is final: later attempts of the job follow it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use togi_common::{DatasetId, Generation};
use togi_model::{Engine, Lora};
use togi_runtime::worker::Claim;
use togi_runtime::worker::lease::Lease;
use togi_runtime::{Class, JobId, Store, layout};
use togi_tokens::{Split, Tokenizer};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, Span, info};

use crate::dataset;
use crate::error::{Error, Result};
use crate::gate::measure::{Measure, Pair};
use crate::gate::questions::{self, Question};
use crate::gate::{Answers, Evaluation, Gate, HeldOut, Verdict};
use crate::learn::data::{Order, Reader, Rows};
use crate::patience::{report, retry};
use crate::run::announcement::Announcement;
use crate::run::job::Job;
use crate::run::parts::Parts;
use crate::serving::{self, Current, Serving};

/// A published adapter that awaits its gate's decision.
pub(crate) struct Candidate<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) claim: &'a Claim,
    pub(crate) job: &'a Job,
    pub(crate) gate: &'a Gate,
    pub(crate) lora: &'a Lora,
    pub(crate) generation: Generation,
}

impl Candidate<'_> {
    /// Returns the gate's decision and publishes its event, on every call.
    ///
    /// # Errors
    /// The errors of the rows, the engine and the store; [`Error::ClaimEnded`] if the claim ended
    /// first. An adapter that does not pass is not an error.
    pub(crate) async fn evaluate(&self) -> Result<Evaluation> {
        let (store, lease) = (&self.parts.store, &self.claim.lease);
        let (job, generation) = (&self.job.id, self.generation);
        let known = retry!(lease, find(store, job))?;
        let evaluated = match known.filter(|known| known.generation == generation) {
            Some(known) => known,
            None => {
                let measured = self.measure().await?;
                retry!(lease, keep(store, job, &measured))?
            }
        };
        let Evaluation {
            passed,
            reason,
            serving,
            ..
        } = &evaluated;
        let serving = serving.map_or_else(String::new, String::from);
        self.parts.metrics.evaluated(*passed);
        info!(%job, %generation, serving, passed, reason, "adapter evaluated");
        let announcement = Announcement::AdapterEvaluated(&evaluated);
        self.parts.announce(announcement).await;
        Ok(evaluated)
    }

    async fn measure(&self) -> Result<Evaluation> {
        let Candidate {
            parts, claim, job, ..
        } = self;
        let (store, lease, request) = (&parts.store, &claim.lease, &job.request);
        let alias = &request.request.alias;
        let identity = &request.identity;
        let config = &job.base.config;
        let current = retry!(
            lease,
            serving::at(store, &parts.aliases, alias, identity, config)
        )?;
        let named = Some(alias).filter(|alias| !alias.is_empty());
        let named = named.map(|alias| layout::parse("alias", alias));
        let mut evaluated = Evaluation {
            generation: self.generation,
            alias: named.transpose()?,
            job: job.id.clone(),
            passed: false,
            reason: String::new(),
            serving: None,
            held_out: Vec::new(),
            answers: None,
        };
        let serving = match current {
            Current::None => None,
            Current::Comparable(serving) => Some(*serving),
            Current::Incomparable(manifest, what) => {
                evaluated.reason = format!(
                    "the generation that {alias:?} names was trained with another {what}, so that the two cannot be compared; \
                     `togi adapters promote` decides by hand"
                );
                evaluated.serving = Some(manifest.generation);
                return Ok(evaluated);
            }
        };
        let mut held_out = vec![retry!(lease, rows(parts, lease, identity.dataset))?];
        if let Some(serving) = &serving {
            evaluated.serving = Some(serving.manifest.generation);
            let theirs = serving.manifest.identity.dataset;
            if theirs != identity.dataset {
                held_out.extend(retry!(lease, rows_if_any(parts, lease, theirs))?);
            }
        }
        let asked = match &self.gate.questions {
            Some(upload) => retry!(lease, questions::read(store, upload))?,
            None => Vec::new(),
        };
        let base = &request.request.base;
        let engine = parts.bases.engine(base, job.recipe.precision).await?;
        let work = Work {
            engine,
            lora: self.lora.clone(),
            serving,
            asked,
            gate: self.gate.clone(),
            together: job.recipe.batch_size as usize,
        };
        let (measured, answers) = work.on_thread(held_out, claim).await?;
        let Verdict { passed, reason } = self.gate.judge(&measured, answers.as_ref());
        Ok(Evaluation {
            passed,
            reason,
            held_out: measured,
            answers,
            ..evaluated
        })
    }
}

/// Returns the decision on a job's adapter; `None` if there is no decision yet.
///
/// # Errors
/// The store's.
pub(crate) async fn find(store: &Store, job: &JobId) -> Result<Option<Evaluation>> {
    match store.get_json(&layout::job_evaluation(job)).await {
        Ok(evaluated) => Ok(Some(evaluated)),
        Err(error) if error.class() == Class::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Stores the decision, or returns the one that is already stored.
async fn keep(store: &Store, job: &JobId, ours: &Evaluation) -> Result<Evaluation> {
    match store.put_new_json(&layout::job_evaluation(job), ours).await {
        Ok(_) => Ok(ours.clone()),
        Err(error) if error.class() == Class::AlreadyExists => {
            let first = find(store, job).await?;
            let same = first.filter(|first| first.generation == ours.generation);
            Ok(same.unwrap_or_else(|| ours.clone()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The validation rows of a data set, and the task that reads them.
struct HeldOutRows {
    dataset: DatasetId,
    count: u64,
    rows: Rows,
    reader: AbortOnDropHandle<()>,
    reporting: AbortOnDropHandle<()>,
}

async fn rows(parts: &Parts, lease: &Lease, dataset: DatasetId) -> Result<HeldOutRows> {
    let manifest = dataset::manifest(&parts.store, dataset).await?;
    let count = manifest.rows(Split::Validation);
    let order = Order {
        dataset: dataset.into(),
        split: Split::Validation,
        rows: count,
        seed: 0,
        shuffle: false,
        epochs: 1,
    };
    let client = parts.data_prep.clone();
    let (reader, rows) = Reader::new(client, order, parts.training.prefetch_bytes);
    let reporting = tokio::spawn(report(lease.clone(), reader.waits()));
    let reading = reader.run(Default::default()).in_current_span();
    Ok(HeldOutRows {
        dataset,
        count,
        rows,
        reporting: AbortOnDropHandle::new(reporting),
        reader: AbortOnDropHandle::new(tokio::spawn(reading)),
    })
}

/// Like [`rows`], but `None` if the data set is gone or has no validation rows.
async fn rows_if_any(
    parts: &Parts,
    lease: &Lease,
    dataset: DatasetId,
) -> Result<Option<HeldOutRows>> {
    match rows(parts, lease, dataset).await {
        Ok(held) => Ok(Some(held).filter(|held| held.count > 0)),
        Err(error) if error.class() == Class::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The inputs of a measurement.
struct Work {
    engine: Arc<Engine>,
    lora: Lora,
    serving: Option<Serving>,
    asked: Vec<Question>,
    gate: Gate,
    together: usize,
}

impl Work {
    /// Measures on a separate thread. If the claim ends, the thread ends at its next pass, and this
    /// waits for it.
    async fn on_thread(
        self,
        held_out: Vec<HeldOutRows>,
        claim: &Claim,
    ) -> Result<(Vec<HeldOut>, Option<Answers>)> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut readers, mut sources) = (Vec::new(), Vec::new());
        for held in held_out {
            readers.push((held.reader, held.reporting));
            sources.push((held.dataset, held.count, held.rows));
        }
        let (span, stopped) = (Span::current(), Arc::clone(&stop));
        let mut measuring =
            tokio::task::spawn_blocking(move || span.in_scope(|| self.measure(sources, &stopped)));
        let measured = tokio::select! {
            biased;
            () = claim.lease.lost() => None,
            () = claim.lease.cancelled() => None,
            () = claim.stopper.stopped() => None,
            measured = &mut measuring => Some(measured),
        };
        if let Some(measured) = measured {
            return measured.map_err(|_| Error::Panicked)?;
        }
        stop.store(true, Ordering::Relaxed);
        // A thread that waits for a row receives `None` and ends.
        drop(readers);
        // The result is no longer needed.
        let _ = measuring.await;
        Err(Error::ClaimEnded)
    }

    fn measure(
        &self,
        sources: Vec<(DatasetId, u64, Rows)>,
        stop: &AtomicBool,
    ) -> Result<(Vec<HeldOut>, Option<Answers>)> {
        let measure = Measure {
            engine: &self.engine,
            pair: Pair {
                new: &self.lora,
                serving: self.serving.as_ref().map(|serving| &serving.lora),
            },
            stop,
        };
        let mut losses = Vec::new();
        for (dataset, count, mut rows) in sources {
            // The first data set is the adapter's own.
            let is_own = losses.is_empty();
            let figures = measure.losses(&mut rows, count, self.together)?;
            losses.push(HeldOut {
                dataset,
                rows: count,
                loss: figures.new,
                serving_loss: figures.serving,
                base_loss: is_own.then_some(figures.base),
            });
        }
        if self.asked.is_empty() {
            return Ok((losses, None));
        }
        let tokenizer = self.engine.base().tokenizer();
        let tokenizer = tokenizer.ok_or_else(|| Error::unfit("base", "has no tokenizer"))?;
        let tokenizer = Tokenizer::from_bytes(tokenizer)?;
        let most = self.gate.max_new_tokens;
        let figures = measure.answers(&tokenizer, &self.asked, most)?;
        let answers = Answers {
            asked: self.asked.len() as u64,
            right: figures.new,
            serving_right: figures.serving,
        };
        Ok((losses, Some(answers)))
    }
}

#[cfg(test)]
mod tests {
    use togi_testing::folder_store;

    use super::*;

    fn id(digit: &str) -> String {
        digit.repeat(64)
    }

    #[tokio::test]
    async fn a_decision_over_a_loss_that_is_no_number_is_read_again() {
        let (_folder, store) = folder_store().await;
        let job: JobId = "job".parse().unwrap();
        let measured = HeldOut {
            dataset: id("d").parse().unwrap(),
            rows: 1,
            loss: f64::INFINITY,
            serving_loss: Some(1.5),
            base_loss: None,
        };
        let decided = Evaluation {
            generation: id("a").parse().unwrap(),
            alias: None,
            job: job.clone(),
            passed: false,
            reason: String::new(),
            serving: None,
            held_out: vec![measured],
            answers: None,
        };
        keep(&store, &job, &decided).await.unwrap();
        let found = find(&store, &job).await.unwrap().unwrap();
        assert!(found.held_out[0].loss.is_nan());
        assert_eq!(found.held_out[0].serving_loss, Some(1.5));
    }

    #[tokio::test]
    async fn a_decision_of_before_whose_loss_was_no_number_is_read() {
        let (_folder, store) = folder_store().await;
        let job = "job".parse().unwrap();
        let (generation, dataset) = (id("a"), id("d"));
        let written = format!(
            r#"{{"generation":"{generation}","heldOut":[{{"dataset":"{dataset}","loss":null}}],"job":"job"}}"#
        );
        let key = layout::job_evaluation(&job);
        store.put_new(&key, written).await.unwrap();
        let found = find(&store, &job).await.unwrap().unwrap();
        assert!(found.held_out[0].loss.is_nan());
    }

    #[tokio::test]
    async fn a_stored_decision_keeps_its_spelling() {
        let (_folder, store) = folder_store().await;
        let (generation, serving) = (id("a"), id("b"));
        let (dataset, other) = (id("d"), id("e"));
        let whole = format!(
            concat!(
                r#"{{"alias":"kana","answers":{{"asked":"20","right":"19","servingRight":"0"}},"#,
                r#""generation":"{}","heldOut":[{{"dataset":"{}","loss":1.5,"rows":"3","#,
                r#""servingLoss":0.0}},{{"dataset":"{}","rows":"4"}}],"job":"whole","passed":true,"#,
                r#""reason":"r","serving":"{}"}}"#,
            ),
            generation, dataset, other, serving
        );
        let first = format!(r#"{{"generation":"{generation}","job":"first"}}"#);
        for (job, stored) in [("whole", whole), ("first", first)] {
            let id = job.parse().unwrap();
            let key = layout::job_evaluation(&id);
            store.put_new(&key, stored.clone()).await.unwrap();
            let found = find(&store, &id).await.unwrap().unwrap();
            let copy = format!("{job}-again").parse().unwrap();
            keep(&store, &copy, &found).await.unwrap();
            let written = store.get(&layout::job_evaluation(&copy)).await.unwrap();
            assert_eq!(written, stored);
        }
    }
}
