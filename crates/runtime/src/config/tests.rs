//! A configuration is put together from its sources, and a wrong one is named with its place.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::config::load::load_from;
use crate::config::{NatsConfig, StoreConfig};
use crate::error::{Error, Result};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    roles: Vec<String>,
    nats: NatsConfig,
    store: StoreConfig,
    work: Work,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Work {
    workers: u32,
    name: String,
}

const DEFAULT: &str = "roles = ['a', 'b']\n[nats]\nurl = 'nats://a'\n[store]\nurl = 'file:///s'\n[work]\nworkers = 2\nname = 'x'\n";

fn load_with(files: &[PathBuf], env: &[(&str, &str)]) -> Result<Sample> {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    load_from(
        DEFAULT,
        files,
        "TOGI",
        env,
        |sample: &Sample| match sample.work.workers {
            0 => Err(Error::invalid(
                "work.workers",
                "work.workers must be at least 1",
            )),
            _ => Ok(()),
        },
    )
}

#[test]
fn files_go_over_the_default_and_the_environment_over_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("togi.toml");
    std::fs::write(&file, "[work]\nworkers = 3\nname = 'file'\n").unwrap();
    let env = [
        ("TOGI_WORK__NAME", "12"),
        ("TOGI_STORE__OPTIONS__ALLOW_HTTP", "true"),
        ("TOGI_NATS_SERVER", "/not/configuration"),
        ("OTHER_WORK__NAME", "no"),
        ("TOGI_ROLES", "['b']"),
    ];
    let sample = load_with(&[file], &env).unwrap();
    assert_eq!((sample.work.workers, sample.work.name.as_str()), (3, "12"));
    assert_eq!(sample.store.options["allow_http"], "true");
    assert_eq!(sample.roles, ["b"]);
    assert_eq!(sample.nats.ack_wait(), Duration::from_secs(30));
}

#[test]
fn a_wrong_variable_is_named_with_its_value_and_what_is_allowed() {
    let table = [
        (
            "TOGI_WORK__WORKRES",
            "3",
            &["workres", "expected `workers` or `name`"][..],
        ),
        (
            "TOGI_WORK__WORKERS",
            "many",
            &["TOGI_WORK__WORKERS is \"many\"", "expected u32"],
        ),
        (
            "TOGI_WORK__WORKERS",
            "0",
            &["TOGI_WORK__WORKERS is \"0\"", "at least 1"],
        ),
        ("TOGI_WORK", "3", &["TOGI_WORK"]),
        (
            "TOGI_WORK__WORKERS__X",
            "3",
            &["TOGI_WORK__WORKERS__X", "not a section"],
        ),
        (
            "TOGI_ROLES",
            "a",
            &["TOGI_ROLES is \"a\"", "expected a sequence"],
        ),
    ];
    for (name, value, says) in table {
        // Valid variables are not reported.
        let env = [
            (name, value),
            ("TOGI_NATS__REPLICAS", "3"),
            ("TOGI_WORK__NAME", "y"),
        ];
        let Err(error) = load_with(&[], &env) else {
            // A value does not replace a section.
            assert_eq!(name, "TOGI_WORK");
            continue;
        };
        for part in says {
            assert!(error.message().contains(part), "{part}: {error}");
        }
        assert!(!error.message().contains('\n'), "{error}");
    }
    // Of two wrong variables, one is reported.
    let env = [
        ("TOGI_WORK__WORKERS", "many"),
        ("TOGI_NATS__REPLICAS", "few"),
    ];
    let error = load_with(&[], &env).unwrap_err();
    assert!(error.message().starts_with("TOGI_"), "{error}");
}

#[test]
fn a_secret_in_a_wrong_place_is_not_echoed() {
    for (name, value) in [
        ("TOGI_STORE__SECRET_KEY", "hunter2"),
        ("TOGI_STORE__OPTIONS__AWS_SECRET_ACCESS_KEY__X", "hunter2"),
        ("TOGI_NATS__REPLICAS", "nats://user:hunter2@host"),
    ] {
        let error = load_with(&[], &[(name, value)]).unwrap_err();
        assert!(error.message().starts_with(name), "{error}");
        assert!(!error.chain().contains("hunter2"), "{error}");
    }
}

#[test]
fn a_wrong_file_is_named_with_its_line() {
    let error = load_with(&[PathBuf::from("/no/such.toml")], &[]).unwrap_err();
    assert!(error.message().contains("/no/such.toml"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.toml");
    std::fs::write(&good, "[work]\nname = 'z'\n").unwrap();
    let bad = folder.path().join("bad.toml");
    for (text, line, says) in [
        ("[work]\nworkers = = 1\n", 2, "bad.toml"),
        (
            "[nats]\n\n[work]\nname = 'a'\nworkers = 'many'\n",
            5,
            "expected u32",
        ),
        ("[work]\n\nworkers = 0\n", 3, "at least 1"),
        ("[work]\nworkres = 1\n", 2, "unknown field `workres`"),
    ] {
        std::fs::write(&bad, text).unwrap();
        for files in [[good.clone(), bad.clone()], [bad.clone(), good.clone()]] {
            let error = load_with(&files, &[("TOGI_WORK__NAME", "y")]).unwrap_err();
            let place = format!("bad.toml, line {line}: ");
            assert!(error.message().contains(&place), "{place}: {error}");
            assert!(error.message().contains(says), "{says}: {error}");
        }
    }
}
