//! What may be deleted: a pure decision over everything the store lists and every manifest's words.
//!
//! A file below a data set, an adapter or a checkpoint is reached when the manifest of its folder names it; an upload, when
//! the request of an unfinished job or the newest version of a policy does. What is not reached and older than a day is garbage. A manifest that cannot be
//! understood ends the whole run before anything is deleted: nobody knows then what it reaches.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use togi_runtime::{JobId, layout, registry};
use togi_tokens::DatasetManifest;

use crate::error::{Error, Result};

/// Younger objects may belong to something that is being made.
pub const AGE: SignedDuration = SignedDuration::from_hours(24);

/// An object as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last written.
    pub written: Timestamp,
}

/// What is known of the store.
#[derive(Debug, Default)]
pub struct Facts {
    /// Everything that it lists.
    pub objects: Vec<Object>,
    /// The bytes of every key that [`is_read`] names.
    pub contents: BTreeMap<String, Vec<u8>>,
}

/// What becomes of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be deleted, the oldest first.
    pub garbage: Vec<Object>,
    /// Unreached, but kept because of its age.
    pub young: usize,
    /// Jobs that have not ended: as long as there are some, leftovers of data sets and adapters are kept, for such a job
    /// may be about to use them again.
    pub unfinished_jobs: usize,
}

/// Whether a decision needs the object's bytes: manifests, revisions and requests.
pub fn is_read(key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    matches!(
        parts.as_slice(),
        ["datasets" | "adapters", _, "manifest.json"]
            | ["jobs", _, "request.json"]
            | ["jobs", _, "checkpoints", _, _, "manifest.json"]
            | ["names" | "aliases" | "policies", _, _]
    )
}

/// Decides over everything.
///
/// # Errors
/// [`Error::Failed`] naming the first manifest that cannot be understood or names a thing that is not there.
pub fn plan(facts: &Facts, now: Timestamp) -> Result<Plan> {
    let keys: BTreeSet<&str> = facts
        .objects
        .iter()
        .map(|object| object.key.as_str())
        .collect();
    let reached = reached(facts, &keys)?;
    let unfinished = unfinished_jobs(&keys);
    let mut plan = Plan {
        unfinished_jobs: unfinished.len(),
        ..Plan::default()
    };
    for object in &facts.objects {
        if !is_leftover(&object.key, &unfinished) || reached.contains(object.key.as_str()) {
            continue;
        }
        if now.duration_since(object.written) > AGE {
            plan.garbage.push(object.clone());
        } else {
            plan.young += 1;
        }
    }
    plan.garbage
        .sort_by(|a, b| a.written.cmp(&b.written).then_with(|| a.key.cmp(&b.key)));
    Ok(plan)
}

/// Whether the object is of a kind that must be reached by something to be kept.
fn is_leftover(key: &str, unfinished: &BTreeSet<&str>) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["uploads" | "probe", _] => true,
        ["datasets" | "adapters", _, _] => unfinished.is_empty(),
        ["jobs", job, "checkpoints", _, _, _] => !unfinished.contains(job),
        // Requests, logs, reports, revisions, policies, and whatever we do not know.
        _ => false,
    }
}

/// Returns the keys that manifests and unfinished jobs' requests name, the manifests' own included.
fn reached(facts: &Facts, keys: &BTreeSet<&str>) -> Result<BTreeSet<String>> {
    let mut reached = BTreeSet::new();
    let unfinished = unfinished_jobs(keys);
    for (key, bytes) in facts.contents.iter().filter(|(key, _)| is_read(key)) {
        let parts: Vec<&str> = key.split('/').collect();
        let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
        let files: Vec<String> = match parts.as_slice() {
            ["datasets", ..] => dataset_files(key, bytes)?,
            ["adapters", ..] => parse::<registry::AdapterManifest>(key, bytes)?
                .files
                .into_keys()
                .collect(),
            ["jobs", _, "checkpoints", ..] => {
                parse::<Files>(key, bytes)?.files.into_keys().collect()
            }
            ["names", ..] => {
                let revision: registry::NameRevision = parse(key, bytes)?;
                must_exist(
                    key,
                    layout::dataset_manifest(&revision.dataset).as_ref(),
                    keys,
                )?;
                continue;
            }
            ["aliases", ..] => {
                let revision: registry::AliasRevision = parse(key, bytes)?;
                must_exist(
                    key,
                    layout::adapter_manifest(&revision.generation).as_ref(),
                    keys,
                )?;
                continue;
            }
            ["policies", ..] => {
                if !is_replaced(key, keys) {
                    uploads(&parse(key, bytes)?, &mut reached);
                }
                continue;
            }
            ["jobs", job, "request.json"] => {
                let request = parse::<serde_json::Value>(key, bytes)?;
                if unfinished.contains(job) {
                    uploads(&request, &mut reached);
                }
                continue;
            }
            _ => continue,
        };
        reached.insert(key.clone());
        for name in files {
            let file = format!("{folder}/{name}");
            must_exist(key, &file, keys)?;
            reached.insert(file);
        }
    }
    Ok(reached)
}

/// Whether there is a revision after this one.
fn is_replaced(key: &str, keys: &BTreeSet<&str>) -> bool {
    let path = key.into();
    let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder).into();
    layout::parse_revision(&path)
        .is_some_and(|n| keys.contains(layout::revision(&folder, n + 1).as_ref()))
}

fn dataset_files(key: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let manifest = DatasetManifest::from_json(bytes)
        .map_err(|error| not_understood(key, &error.to_string()))?;
    Ok(manifest
        .parts
        .into_iter()
        .map(|part| part.path)
        .chain([manifest.rejects.path])
        .collect())
}

/// A checkpoint's manifest, as far as it counts here.
#[derive(Deserialize)]
struct Files {
    files: BTreeMap<String, serde_json::Value>,
}

/// Collects every upload that a request names: any text of an upload's form counts, wherever it stands.
fn uploads(value: &serde_json::Value, reached: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::String(text) if layout::validate_digest("upload", text).is_ok() => {
            reached.insert(layout::upload(text).to_string());
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| uploads(value, reached)),
        serde_json::Value::Object(values) => {
            values.values().for_each(|value| uploads(value, reached))
        }
        _ => {}
    }
}

/// Jobs that have a request and no end.
fn unfinished_jobs<'a>(keys: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let asked = keys.iter().filter_map(|key| {
        let parts: Vec<&str> = key.split('/').collect();
        match parts.as_slice() {
            ["jobs", job, "request.json"] => Some(*job),
            _ => None,
        }
    });
    let has_ended = |job: &str| {
        JobId::parse(job).is_ok_and(|id| keys.contains(layout::job_final(&id).as_ref()))
    };
    asked.filter(|job| !has_ended(job)).collect()
}

fn parse<T: serde::de::DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| not_understood(key, &error.to_string()))
}

fn must_exist(by: &str, key: &str, keys: &BTreeSet<&str>) -> Result<()> {
    if keys.contains(key) {
        Ok(())
    } else {
        Err(not_understood(
            by,
            &format!("it names {key}, which is not there"),
        ))
    }
}

fn not_understood(key: &str, why: &str) -> Error {
    Error::Failed(format!(
        "{key} cannot be relied on ({why}); nothing was deleted"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    /// A store with one of everything, all of it old.
    fn facts() -> Facts {
        let upload = |digit: &str| format!("uploads/{}", digit.repeat(64));
        let adapter = serde_json::json!({
            "schema_version": 1, "generation": "a".repeat(64), "rank": 8, "alpha": 32.0,
            "identity": {"base": "", "base_precision": "f32", "tokenizer": "", "template": "", "dataset": "", "recipe": ""},
            "target_modules": ["query_key_value"], "job": "j", "recipe_name": "r",
            "files": {"adapter_model.safetensors": {"bytes": 1, "sha256": ""}},
        });
        let mut facts = Facts::default();
        for (key, content) in [
            (upload("1"), String::new()),
            (upload("2"), String::new()),
            ("probe/x".into(), String::new()),
            (
                "jobs/done/request.json".into(),
                format!("{{\"upload\":{:?}}}", "1".repeat(64)),
            ),
            ("jobs/done/final.json".into(), String::new()),
            ("jobs/done/checkpoints/5/1/lora.f32".into(), String::new()),
            (
                "jobs/done/checkpoints/5/1/manifest.json".into(),
                "{\"files\":{\"lora.f32\":{}}}".into(),
            ),
            ("jobs/done/checkpoints/9/1/lora.f32".into(), String::new()),
            ("jobs/done/log.jsonl".into(), String::new()),
            ("adapters/aa/manifest.json".into(), adapter.to_string()),
            (
                "adapters/aa/adapter_model.safetensors".into(),
                String::new(),
            ),
            ("adapters/aa/stray".into(), String::new()),
            (
                "adapters/bb/adapter_model.safetensors".into(),
                String::new(),
            ),
            (
                "aliases/x/1.json".into(),
                "{\"alias\":\"x\",\"generation\":\"aa\",\"time\":\"\"}".into(),
            ),
            ("datasets/dd/part-00000.parquet".into(), String::new()),
            ("somebody/elses".into(), String::new()),
        ] {
            let written = Timestamp::from_second(NOW - 100_000).unwrap();
            facts.objects.push(Object {
                key: key.clone(),
                bytes: 1,
                written,
            });
            facts.contents.insert(key, content.into_bytes());
        }
        facts.contents.retain(|key, _| is_read(key));
        facts
    }

    fn garbage(facts: &Facts) -> Vec<String> {
        let plan = plan(facts, Timestamp::from_second(NOW).unwrap()).unwrap();
        plan.garbage.into_iter().map(|object| object.key).collect()
    }

    fn add(facts: &mut Facts, key: &str, content: &str) {
        let written = Timestamp::from_second(NOW - 100_000).unwrap();
        facts.objects.push(Object {
            key: key.into(),
            bytes: 1,
            written,
        });
        facts.contents.insert(key.into(), content.into());
    }

    #[test]
    fn only_what_nothing_reaches_is_garbage() {
        let [one, two] = ["1", "2"].map(|digit| format!("uploads/{}", digit.repeat(64)));
        assert_eq!(
            garbage(&facts()),
            [
                "adapters/aa/stray",
                "adapters/bb/adapter_model.safetensors",
                "datasets/dd/part-00000.parquet",
                "jobs/done/checkpoints/9/1/lora.f32",
                "probe/x",
                &one,
                &two,
            ]
        );
    }

    #[test]
    fn an_unfinished_job_keeps_its_uploads_and_all_leftovers() {
        let mut facts = facts();
        add(
            &mut facts,
            "jobs/open/request.json",
            &format!("{{\"records\":{{\"upload\":{:?}}}}}", "2".repeat(64)),
        );
        add(&mut facts, "jobs/open/checkpoints/1/1/lora.f32", "");
        assert_eq!(
            garbage(&facts),
            [
                "jobs/done/checkpoints/9/1/lora.f32",
                "probe/x",
                &format!("uploads/{}", "1".repeat(64))
            ]
        );
    }

    #[test]
    fn a_policy_keeps_the_questions_of_its_newest_version() {
        let version = |digit: &str| {
            let gate = serde_json::json!({ "questions": digit.repeat(64) });
            serde_json::json!({ "policy": { "gate": gate }, "seen": 1 }).to_string()
        };
        let mut facts = facts();
        add(&mut facts, "policies/p/9.json", &version("1"));
        add(&mut facts, "policies/p/10.json", &version("2"));
        let uploads = |facts: &Facts| {
            let mut garbage = garbage(facts);
            garbage.retain(|key| key.starts_with("uploads/"));
            garbage
        };
        assert_eq!(uploads(&facts), [format!("uploads/{}", "1".repeat(64))]);
        add(
            &mut facts,
            "policies/p/11.json",
            "{\"policy\":null,\"seen\":1}",
        );
        assert_eq!(
            uploads(&facts).len(),
            2,
            "a policy that was ended keeps nothing"
        );
    }

    #[test]
    fn young_objects_are_kept() {
        let mut facts = facts();
        for object in &mut facts.objects {
            object.written = Timestamp::from_second(NOW - 86_000).unwrap();
        }
        let plan = plan(&facts, Timestamp::from_second(NOW).unwrap()).unwrap();
        assert!(plan.garbage.is_empty());
        assert_eq!(plan.young, 7);
    }

    #[test]
    fn a_manifest_that_cannot_be_relied_on_ends_the_run() {
        let spoil: [(&str, &str); 6] = [
            ("adapters/aa/manifest.json", "{"),
            ("datasets/ee/manifest.json", "{}"),
            (
                "jobs/done/checkpoints/5/1/manifest.json",
                "{\"files\":{\"other\":{}}}",
            ),
            (
                "aliases/x/2.json",
                "{\"alias\":\"x\",\"generation\":\"gone\",\"time\":\"\"}",
            ),
            (
                "names/n/1.json",
                "{\"name\":\"n\",\"dataset\":\"gone\",\"time\":\"\"}",
            ),
            ("jobs/done/request.json", "no"),
        ];
        for (key, content) in spoil {
            let mut facts = facts();
            add(&mut facts, key, content);
            let error = plan(&facts, Timestamp::from_second(NOW).unwrap()).unwrap_err();
            assert!(error.to_string().starts_with(key), "{error}");
        }
    }
}
