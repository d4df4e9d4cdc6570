//! A job's log: one line per step, durable within a second; a reader sees a complete prefix at any
//! time.
//!
//! A line is the proto3 JSON of `togi.trainer.v1.Step`. While a job runs its lines lie in segments,
//! objects that never change, named by their first step, last step and the claim that wrote them. A
//! checkpoint folds the segments since the one before it into one. A job that is taken over goes on
//! at its checkpoint and repeats the steps after it, so the reader's rule is: the lines of a claim
//! end where a later claim's begin. `log.jsonl`, written when the job ends, counts as the earliest
//! claim.

use std::collections::BTreeMap;

use bytes::Bytes;
use object_store::path::Path;
use togi_runtime::{Class, Fence, JobId, Store, layout};

use crate::error::{Error, Result};
use crate::learn::step::Step;

/// How often a reader starts again when a segment was folded between listing and reading it.
const READS: u32 = 8;

/// Writes one claim's lines.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    job: JobId,
    fence: Fence,
    pending: Vec<Step>,
    unfolded: Vec<(Path, Vec<Step>)>,
}

impl Writer {
    /// Returns a writer for the lines of the claim with this fence.
    #[must_use]
    pub fn new(store: Store, job: &JobId, fence: Fence) -> Writer {
        Writer {
            store,
            job: job.clone(),
            fence,
            pending: Vec::new(),
            unfolded: Vec::new(),
        }
    }

    /// Takes a line; it is durable after the next [`Writer::flush`].
    pub fn push(&mut self, step: Step) {
        self.pending.push(step);
    }

    /// Returns the newest line that is not durable yet.
    #[must_use]
    pub fn pending(&self) -> Option<&Step> {
        self.pending.last()
    }

    /// Writes the lines taken since the last flush as a segment.
    ///
    /// # Errors
    /// The store's; the lines are kept for the next flush.
    pub async fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let path = self.write(&self.pending).await?;
        self.unfolded
            .push((path, std::mem::take(&mut self.pending)));
        Ok(())
    }

    /// Flushes, then makes one segment of those since the last fold. Readers see the lines
    /// throughout: the one is there before the many go.
    ///
    /// # Errors
    /// The store's.
    pub async fn fold(&mut self) -> Result<()> {
        self.flush().await?;
        if self.unfolded.len() > 1 {
            let lines: Vec<Step> = self
                .unfolded
                .iter()
                .flat_map(|(_, lines)| lines.iter().cloned())
                .collect();
            self.write(&lines).await?;
            for (path, _) in &self.unfolded {
                self.store.delete(path).await?;
            }
        }
        self.unfolded.clear();
        Ok(())
    }

    async fn write(&self, lines: &[Step]) -> Result<Path> {
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
            return Err(Error::damaged(
                "an empty log segment",
                "it has no first step",
            ));
        };
        let path = layout::job_log_segment(&self.job, first.step, last.step, self.fence);
        self.store.put_new(&path, encode(lines)?).await?;
        Ok(path)
    }
}

/// Returns a job's lines from step `from` on, in order, each step once.
///
/// # Errors
/// The store's, and [`Error::Damaged`] for a line that cannot be parsed.
pub async fn read(store: &Store, job: &JobId, from: u64) -> Result<Vec<Step>> {
    let mut reads = 0;
    loop {
        reads += 1;
        match read_once(store, job, from).await {
            Err(Error::Runtime(error)) if error.class() == Class::NotFound && reads < READS => {}
            answer => return answer.map(|steps| steps.into_values().collect()),
        }
    }
}

/// Writes `log.jsonl` from the segments and removes them. Doing it again, after it was cut short
/// anywhere, gives the same bytes.
///
/// # Errors
/// The store's.
pub async fn finish(store: &Store, job: &JobId) -> Result<Vec<Step>> {
    let gathered = Gathered::from(store, job).await?;
    gathered.replace(store, job).await
}

/// A log, and the segments that are in it.
struct Gathered {
    lines: Vec<Step>,
    segments: Vec<Segment>,
}

impl Gathered {
    async fn from(store: &Store, job: &JobId) -> Result<Gathered> {
        // Before the lines, which then have all of them: a claim after this one may be writing
        // already.
        let segments = segments(store, job).await?;
        let lines = read(store, job, 1).await?;
        Ok(Gathered { lines, segments })
    }

    async fn replace(self, store: &Store, job: &JobId) -> Result<Vec<Step>> {
        store
            .put(&layout::job_log(job), encode(&self.lines)?)
            .await?;
        // Oldest claim first, then oldest step: what is left after any part of this loop is the
        // log's end, which the reader's rule joins to log.jsonl without a gap.
        for segment in self.segments {
            store.delete(&segment.path).await?;
        }
        Ok(self.lines)
    }
}

struct Segment {
    fence: Fence,
    first: u64,
    last: u64,
    path: Path,
}

async fn segments(store: &Store, job: &JobId) -> Result<Vec<Segment>> {
    let mut segments: Vec<Segment> = store
        .list(&layout::job_log_segments(job))
        .await?
        .into_iter()
        .filter_map(|object| {
            let (first, last, fence) = layout::parse_job_log_segment(&object.location)?;
            Some(Segment {
                fence,
                first,
                last,
                path: object.location,
            })
        })
        .collect();
    segments.sort_by_key(|segment| (segment.fence, segment.first));
    Ok(segments)
}

async fn read_once(store: &Store, job: &JobId, from: u64) -> Result<BTreeMap<u64, Step>> {
    let mut steps = BTreeMap::new();
    let mut end = u64::MAX;
    for (claim_first, claim) in by_claim(segments(store, job).await?).into_iter().rev() {
        for segment in claim
            .iter()
            .filter(|segment| segment.last >= from && segment.first < end)
        {
            let bytes = store.get(&segment.path).await?;
            let lines = decode(&segment.path, &bytes)?;
            steps.extend(
                lines
                    .into_iter()
                    .filter(|s| s.step >= from && s.step < end)
                    .map(|s| (s.step, s)),
            );
        }
        end = end.min(claim_first);
    }
    let whole = layout::job_log(job);
    match store.get(&whole).await {
        Ok(bytes) => {
            let lines = decode(&whole, &bytes)?;
            steps.extend(
                lines
                    .into_iter()
                    .filter(|s| s.step >= from && s.step < end)
                    .map(|s| (s.step, s)),
            );
        }
        Err(error) if error.class() == Class::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(steps)
}

/// Groups sorted segments by claim, earliest first, each with its first step.
fn by_claim(segments: Vec<Segment>) -> Vec<(u64, Vec<Segment>)> {
    let mut claims: BTreeMap<Fence, Vec<Segment>> = BTreeMap::new();
    for segment in segments {
        claims.entry(segment.fence).or_default().push(segment);
    }
    claims
        .into_values()
        .map(|claim| (claim.iter().map(|s| s.first).min().unwrap_or(0), claim))
        .collect()
}

fn encode(lines: &[Step]) -> Result<Bytes> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    Ok(text.into())
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Vec<Step>> {
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            serde_json::from_slice(line).map_err(|error| Error::damaged(path.to_string(), error))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use togi_testing::folder_store;

    use super::*;

    fn job() -> JobId {
        "job".parse().unwrap()
    }

    /// Lines whose loss says which claim wrote them.
    async fn write(
        store: &Store,
        fence: Fence,
        steps: std::ops::RangeInclusive<u64>,
        lines_a_segment: usize,
    ) -> Writer {
        let mut writer = Writer::new(store.clone(), &job(), fence);
        for (n, step) in steps.enumerate() {
            writer.push(Step {
                step,
                loss: fence.0 as f64,
                ..Default::default()
            });
            if (n + 1) % lines_a_segment == 0 {
                writer.flush().await.unwrap();
            }
        }
        writer.flush().await.unwrap();
        writer
    }

    fn shape(steps: &[Step]) -> Vec<(u64, u64)> {
        steps
            .iter()
            .map(|step| (step.step, step.loss as u64))
            .collect()
    }

    #[tokio::test]
    async fn a_later_claims_lines_replace_an_earlier_ones_from_where_they_begin() {
        let (_folder, store) = folder_store().await;
        write(&store, Fence(3), 1..=7, 2).await;
        write(&store, Fence(9), 5..=6, 1).await;
        let expected = [(1, 3), (2, 3), (3, 3), (4, 3), (5, 9), (6, 9)];
        assert_eq!(shape(&read(&store, &job(), 1).await.unwrap()), expected);
        assert_eq!(
            shape(&read(&store, &job(), 4).await.unwrap()),
            expected[3..]
        );
        assert_eq!(shape(&finish(&store, &job()).await.unwrap()), expected);
        assert_eq!(shape(&read(&store, &job(), 1).await.unwrap()), expected);
        assert!(segments(&store, &job()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn finishing_late_takes_no_line_of_a_later_claim() {
        let (_folder, store) = folder_store().await;
        write(&store, Fence(3), 1..=7, 2).await;
        let late = Gathered::from(&store, &job()).await.unwrap();
        write(&store, Fence(9), 5..=6, 1).await;
        late.replace(&store, &job()).await.unwrap();
        let expected = [(1, 3), (2, 3), (3, 3), (4, 3), (5, 9), (6, 9)];
        assert_eq!(shape(&read(&store, &job(), 1).await.unwrap()), expected);
    }

    #[tokio::test]
    async fn folding_keeps_every_line_and_leaves_one_segment() {
        let (_folder, store) = folder_store().await;
        let mut writer = write(&store, Fence(3), 1..=5, 1).await;
        writer.fold().await.unwrap();
        writer.fold().await.unwrap();
        assert_eq!(segments(&store, &job()).await.unwrap().len(), 1);
        assert_eq!(read(&store, &job(), 1).await.unwrap().len(), 5);
    }

    #[tokio::test]
    async fn finishing_again_after_it_was_cut_short_gives_the_same_log() {
        let (_folder, store) = folder_store().await;
        write(&store, Fence(3), 1..=7, 2).await;
        write(&store, Fence(9), 5..=9, 2).await;
        let whole = shape(&read(&store, &job(), 1).await.unwrap());
        store
            .put(
                &layout::job_log(&job()),
                encode(&read(&store, &job(), 1).await.unwrap()).unwrap(),
            )
            .await
            .unwrap();
        for segment in segments(&store, &job()).await.unwrap() {
            store.delete(&segment.path).await.unwrap();
            assert_eq!(
                shape(&read(&store, &job(), 1).await.unwrap()),
                whole,
                "after {}",
                segment.path
            );
        }
    }

    #[test]
    fn a_stored_line_keeps_its_spelling() {
        let lines = concat!(
            r#"{"step":"3","steps":"10","loss":1.5,"gradientNorm":0.25,"learningRate":0.0002,"#,
            r#""epoch":0.75,"tokensPerSecond":50.0,"samplesPerSecond":2.5,"memoryBytes":"4096","#,
            r#""secondsLeft":7.0,"tokens":"150","deviceMemoryBytes":"9","#,
            r#""gpuUtilizationPercent":99.0,"gpuPowerWatts":500.0,"gpuMemoryBytes":"0","#,
            r#""skippedSteps":"1"}"#,
            "\n",
            r#"{"step":"4","deviceMemoryBytes":"0"}"#,
            "\n",
        );
        let steps = decode(&layout::job_log(&job()), lines.as_bytes()).unwrap();
        assert_eq!(encode(&steps).unwrap(), lines);
        assert_eq!((steps[0].loss, steps[1].loss), (1.5, 0.0));
    }
}
