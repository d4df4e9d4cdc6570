//! Decides which objects may be deleted, from the store's listing and the contents of every
//! manifest.
//!
//! A file below a data set, an adapter or a checkpoint is reached if the manifest of its folder
//! names it. An upload is reached if the request of an unfinished job or the newest version of a
//! policy names it. Unreached objects older than a day are garbage. A manifest that cannot be
//! parsed ends the run before anything is deleted, because the objects that it names are unknown.

mod reach;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use togi_runtime::layout;

use crate::error::Result;

/// Younger objects are kept: something that is still being written may use them.
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

/// The state of the store.
#[derive(Debug, Default)]
pub struct Facts {
    /// Every object that it lists.
    pub objects: Vec<Object>,
    /// The bytes of every object whose key [`is_read`] accepts.
    pub contents: BTreeMap<String, Vec<u8>>,
}

/// The decision.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The objects to delete, oldest first.
    pub garbage: Vec<Object>,
    /// The number of unreached objects that are too young to delete.
    pub young: usize,
    /// The number of unfinished jobs. While there are any, leftovers of data sets and adapters are
    /// kept, because such a job may use them again.
    pub unfinished_jobs: usize,
}

/// Whether the decision needs the object's bytes: those of manifests, revisions and requests.
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

/// Decides what to delete.
///
/// # Errors
/// [`crate::error::Error::Failed`] naming the first manifest that cannot be parsed or names a
/// missing object.
pub fn plan(facts: &Facts, now: Timestamp) -> Result<Plan> {
    let keys: BTreeSet<&str> = facts
        .objects
        .iter()
        .map(|object| object.key.as_str())
        .collect();
    let unfinished = unfinished_jobs(&keys);
    let contents = facts.contents.iter().filter(|(key, _)| is_read(key));
    let reached = reach::reached(contents, &keys, &unfinished)?;
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

/// Whether the object is of a kind that is only kept if something reaches it.
fn is_leftover(key: &str, unfinished: &BTreeSet<&str>) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["uploads" | "probe", _] => true,
        ["datasets" | "adapters", _, _] => unfinished.is_empty(),
        ["jobs", job, "checkpoints", _, _, _] => !unfinished.contains(job),
        // Requests, logs, reports, revisions, policies, and unknown objects.
        _ => false,
    }
}

/// Returns the jobs that have a request and no end.
fn unfinished_jobs<'a>(keys: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let asked = keys.iter().filter_map(|key| {
        let parts: Vec<&str> = key.split('/').collect();
        match parts.as_slice() {
            ["jobs", job, "request.json"] => Some(*job),
            _ => None,
        }
    });
    let has_ended = |job: &str| {
        job.parse()
            .is_ok_and(|id| keys.contains(layout::job_final(&id).as_ref()))
    };
    asked.filter(|job| !has_ended(job)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    /// A store with one of everything, all of it old.
    fn facts() -> Facts {
        let [one, two] = ["a", "b"].map(|digit| digit.repeat(64));
        let upload = |digit: &str| format!("uploads/{}", digit.repeat(64));
        let adapter = serde_json::json!({
            "schema_version": 1, "generation": one, "rank": 8, "alpha": 32.0,
            "identity": {"base": "", "base_precision": "f32", "tokenizer": "", "template": "", "dataset": "d".repeat(64), "recipe": ""},
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
            (format!("adapters/{one}/manifest.json"), adapter.to_string()),
            (
                format!("adapters/{one}/adapter_model.safetensors"),
                String::new(),
            ),
            (format!("adapters/{one}/stray"), String::new()),
            (
                format!("adapters/{two}/adapter_model.safetensors"),
                String::new(),
            ),
            (
                "aliases/x/1.json".into(),
                format!("{{\"alias\":\"x\",\"generation\":\"{one}\",\"time\":\"\"}}"),
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
        let [used, unused] = ["a", "b"].map(|digit| format!("adapters/{}", digit.repeat(64)));
        assert_eq!(
            garbage(&facts()),
            [
                &*format!("{used}/stray"),
                &*format!("{unused}/adapter_model.safetensors"),
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
        let adapter = format!("adapters/{}/manifest.json", "a".repeat(64));
        let absent = format!(
            "{{\"alias\":\"x\",\"generation\":{:?},\"time\":\"\"}}",
            "c".repeat(64)
        );
        let spoil: [(&str, &str); 7] = [
            (&adapter, "{"),
            ("aliases/x/3.json", &absent),
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
