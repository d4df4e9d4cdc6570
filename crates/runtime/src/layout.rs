//! Every object key, and the form of the names in keys. No other file builds a key, so this file
//! documents the store.

use std::fmt;
use std::str::FromStr;

use object_store::path::Path;
use togi_common::{AliasName, DatasetId, Digest, Generation, JobId, name};

use crate::error::{Error, Result};
use crate::fence::Fence;

/// Parses an id or a checked name, such as [`JobId`] or [`DatasetId`].
///
/// # Errors
/// `InvalidArgument` with the field's name.
pub fn parse<T: FromStr<Err: fmt::Display>>(field: &str, text: &str) -> Result<T> {
    let parsed = text.parse::<T>();
    parsed.map_err(|error| Error::invalid(field, format!("{field} {error}")))
}

/// Checks the name of a data set, a policy or a base; these names have no type.
///
/// # Errors
/// `InvalidArgument` with the field's name.
pub fn validate_name(field: &str, text: &str) -> Result<()> {
    name::check(text).map_err(|error| Error::invalid(field, format!("{field} {error}")))
}

/// Checks a SHA-256 in lower-case hex: 64 digits.
///
/// # Errors
/// `InvalidArgument` with the field's name.
pub fn validate_digest(field: &str, digest: &str) -> Result<()> {
    parse::<Digest>(field, digest).map(drop)
}

/// Returns a file's path in a folder. The parts are our own constants or checked manifest entries;
/// any other text becomes one harmless part.
fn file(parts: &[&str]) -> Path {
    Path::from_iter(parts.iter().copied())
}

/// `probe/<id>`: written twice at start, to test whether the store supports conditional writes.
#[must_use]
pub fn probe(id: &str) -> Path {
    file(&["probe", id])
}

/// `uploads/`
#[must_use]
pub fn uploads() -> Path {
    file(&["uploads"])
}

/// `uploads/<sha256>`
#[must_use]
pub fn upload(sha256: &str) -> Path {
    file(&["uploads", sha256])
}

/// `datasets/`
#[must_use]
pub fn datasets() -> Path {
    file(&["datasets"])
}

/// `datasets/<dataset>/`
#[must_use]
pub fn dataset(dataset: DatasetId) -> Path {
    file(&["datasets", &dataset.to_string()])
}

/// `datasets/<dataset>/manifest.json`
#[must_use]
pub fn dataset_manifest(dataset: DatasetId) -> Path {
    dataset_file(dataset, "manifest.json")
}

/// `datasets/<dataset>/<file>`: a file named in the manifest.
#[must_use]
pub fn dataset_file(id: DatasetId, name: &str) -> Path {
    dataset(id).join(name)
}

/// `part-00000.parquet`: the name of a data set's n-th part, as in the manifest.
#[must_use]
pub fn part_name(n: usize) -> String {
    format!("part-{n:05}.parquet")
}

/// `datasets/<dataset>/part-<n>.parquet`
#[must_use]
pub fn dataset_part(dataset: DatasetId, n: usize) -> Path {
    dataset_file(dataset, &part_name(n))
}

/// `datasets/<dataset>/rejects.jsonl`
#[must_use]
pub fn dataset_rejects(dataset: DatasetId) -> Path {
    dataset_file(dataset, "rejects.jsonl")
}

/// `names/`: one folder for each data set's name.
#[must_use]
pub fn names() -> Path {
    file(&["names"])
}

/// `names/<name>/`: the revisions of a data set's name.
#[must_use]
pub fn name_revisions(name: &str) -> Path {
    file(&["names", name])
}

/// `names/<name>/<n>.json`
#[must_use]
pub fn name_revision(name: &str, n: u64) -> Path {
    revision(&name_revisions(name), n)
}

/// `jobs/`
#[must_use]
pub fn jobs() -> Path {
    file(&["jobs"])
}

/// `jobs/<job>/`
#[must_use]
pub fn job(job: &JobId) -> Path {
    file(&["jobs", job.as_str()])
}

/// `jobs/<job>/<name>`
#[must_use]
pub fn job_file(job: &JobId, name: &str) -> Path {
    file(&["jobs", job.as_str(), name])
}

/// `jobs/<job>/request.json`: the request; written before anything refers to the job.
#[must_use]
pub fn job_request(job: &JobId) -> Path {
    job_file(job, "request.json")
}

/// `jobs/<job>/final.json`: the outcome, create-if-absent. A job that has one gets no more work.
#[must_use]
pub fn job_final(job: &JobId) -> Path {
    job_file(job, "final.json")
}

/// `jobs/<job>/log.jsonl`
#[must_use]
pub fn job_log(job: &JobId) -> Path {
    job_file(job, "log.jsonl")
}

/// `jobs/<job>/log/`: the log's segments while the job runs.
#[must_use]
pub fn job_log_segments(job: &JobId) -> Path {
    job_file(job, "log")
}

/// `jobs/<job>/log/<first>-<last>-<fence>.jsonl`: the steps `first` to `last`, written under the
/// claim with this fence.
#[must_use]
pub fn job_log_segment(job: &JobId, first: u64, last: u64, fence: Fence) -> Path {
    job_log_segments(job).join(format!("{first:012}-{last:012}-{fence}.jsonl"))
}

/// Returns the first step, last step and fence of a [`job_log_segment`]; `None` for any other key.
#[must_use]
pub fn parse_job_log_segment(key: &Path) -> Option<(u64, u64, Fence)> {
    let numbers: Vec<u64> = key
        .filename()?
        .strip_suffix(".jsonl")?
        .split('-')
        .map(|n| n.parse().ok())
        .collect::<Option<_>>()?;
    let [first, last, fence] = numbers.as_slice() else {
        return None;
    };
    Some((*first, *last, Fence(*fence)))
}

/// `jobs/<job>/trainer_state.json`
#[must_use]
pub fn job_trainer_state(job: &JobId) -> Path {
    job_file(job, "trainer_state.json")
}

/// `jobs/<job>/report.json`
#[must_use]
pub fn job_report(job: &JobId) -> Path {
    job_file(job, "report.json")
}

/// `jobs/<job>/evaluation.json`: the gate's decision, create-if-absent, so that it is measured only
/// once.
#[must_use]
pub fn job_evaluation(job: &JobId) -> Path {
    job_file(job, "evaluation.json")
}

/// `jobs/<job>/runs/`: TensorBoard.
#[must_use]
pub fn job_runs(job: &JobId) -> Path {
    job_file(job, "runs")
}

/// `jobs/<job>/runs/<name>`
#[must_use]
pub fn job_run(job: &JobId, name: &str) -> Path {
    file(&["jobs", job.as_str(), "runs", name])
}

/// `jobs/<job>/checkpoints/`
#[must_use]
pub fn checkpoints(job: &JobId) -> Path {
    job_file(job, "checkpoints")
}

/// `jobs/<job>/checkpoints/<step>/<fence>/`: the fence gives each worker a folder of its own.
#[must_use]
pub fn checkpoint(job: &JobId, step: u64, fence: Fence) -> Path {
    file(&[
        "jobs",
        job.as_str(),
        "checkpoints",
        &step.to_string(),
        &fence.to_string(),
    ])
}

/// `jobs/<job>/checkpoints/<step>/<fence>/<name>`
#[must_use]
pub fn checkpoint_file(job: &JobId, step: u64, fence: Fence, name: &str) -> Path {
    checkpoint(job, step, fence).join(name)
}

/// `jobs/<job>/checkpoints/<step>/<fence>/manifest.json`
#[must_use]
pub fn checkpoint_manifest(job: &JobId, step: u64, fence: Fence) -> Path {
    checkpoint_file(job, step, fence, "manifest.json")
}

/// Returns the step and fence of a key below [`checkpoints`]; `None` for any other key.
#[must_use]
pub fn parse_checkpoint(key: &Path) -> Option<(u64, Fence)> {
    let parts: Vec<_> = key.parts().collect();
    let [jobs, _, checkpoints, step, fence, ..] = parts.as_slice() else {
        return None;
    };
    if jobs.as_ref() != "jobs" || checkpoints.as_ref() != "checkpoints" {
        return None;
    }
    Some((step.as_ref().parse().ok()?, fence.as_ref().parse().ok()?))
}

/// `adapters/`
#[must_use]
pub fn adapters() -> Path {
    file(&["adapters"])
}

/// `adapters/<generation>/`
#[must_use]
pub fn adapter(generation: Generation) -> Path {
    file(&["adapters", &generation.to_string()])
}

/// `adapters/<generation>/<name>`
#[must_use]
pub fn adapter_file(generation: Generation, name: &str) -> Path {
    adapter(generation).join(name)
}

/// `adapters/<generation>/manifest.json`
#[must_use]
pub fn adapter_manifest(generation: Generation) -> Path {
    adapter_file(generation, "manifest.json")
}

/// `aliases/`: one folder for each alias.
#[must_use]
pub fn aliases() -> Path {
    file(&["aliases"])
}

/// `aliases/<alias>/`
#[must_use]
pub fn alias_revisions(alias: &AliasName) -> Path {
    file(&["aliases", alias.as_str()])
}

/// `aliases/<alias>/<n>.json`
#[must_use]
pub fn alias_revision(alias: &AliasName, n: u64) -> Path {
    revision(&alias_revisions(alias), n)
}

/// `policies/`: a folder for each policy. The bucket `togi_policies` is a mirror that may be lost.
#[must_use]
pub fn policies() -> Path {
    file(&["policies"])
}

/// `policies/<policy>/`
#[must_use]
pub fn policy_revisions(policy: &str) -> Path {
    file(&["policies", policy])
}

/// `<folder>/<n>.json`: the n-th revision in a folder, from 1.
#[must_use]
pub fn revision(folder: &Path, n: u64) -> Path {
    folder.clone().join(format!("{n}.json"))
}

/// Returns n of a key `<folder>/<n>.json`; `None` for any other key.
#[must_use]
pub fn parse_revision(key: &Path) -> Option<u64> {
    let number = key.filename()?.strip_suffix(".json")?;
    let n: u64 = number.parse().ok()?;
    // "007" and "+7" parse as numbers, but are never written.
    (n > 0 && n.to_string() == number).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_text_names_its_field() {
        let error = validate_name("name", "a_b").unwrap_err();
        assert_eq!(error.field(), Some("name"));
        let error = parse::<AliasName>("alias", "").unwrap_err();
        assert_eq!(error.field(), Some("alias"));
        let expected = "alias must have 1 to 63 characters of a-z, 0-9 and \"-\"";
        assert!(error.to_string().contains(expected), "{error}");
        let error = parse::<Generation>("generation", "AB").unwrap_err();
        let expected = "generation must be 64 lower-case hex digits";
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn keys_are_the_documented_ones() {
        let job: JobId = "j1".parse().unwrap();
        let digest = "ab".repeat(32);
        let generation: Generation = digest.parse().unwrap();
        assert!(validate_digest("upload", &digest).is_ok());
        assert!(validate_digest("upload", &digest.to_uppercase()).is_err());
        assert_eq!(
            dataset_part(digest.parse().unwrap(), 3).as_ref(),
            format!("datasets/{digest}/part-00003.parquet")
        );
        assert_eq!(name_revision("n", 2).as_ref(), "names/n/2.json");
        assert_eq!(job_final(&job).as_ref(), "jobs/j1/final.json");
        assert_eq!(
            checkpoint_manifest(&job, 5, Fence(9)).as_ref(),
            "jobs/j1/checkpoints/5/9/manifest.json"
        );
        assert_eq!(
            parse_checkpoint(&checkpoint_manifest(&job, 5, Fence(9))),
            Some((5, Fence(9)))
        );
        assert_eq!(
            parse_job_log_segment(&job_log_segment(&job, 1, 20, Fence(9))),
            Some((1, 20, Fence(9)))
        );
        assert_eq!(
            adapter_manifest(generation).as_ref(),
            format!("adapters/{digest}/manifest.json")
        );
        let alias = "main".parse().unwrap();
        assert_eq!(alias_revision(&alias, 1).as_ref(), "aliases/main/1.json");
        for (key, n) in [
            ("1.json", Some(1)),
            ("01.json", None),
            ("0.json", None),
            ("x.json", None),
            ("7.txt", None),
        ] {
            assert_eq!(parse_revision(&file(&["aliases", "a", key])), n, "{key}");
        }
    }

    #[test]
    fn a_hostile_part_stays_one_part() {
        assert_eq!(upload("../../etc/passwd").parts().count(), 2);
    }
}
