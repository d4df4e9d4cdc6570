//! The client commands against real services: `togi up` in this process, the binary as a child.

use std::fs;
use std::path::Path;

use super::services::Served;

fn write_records(folder: &Path) {
    let line = |n: usize| {
        format!(
            "{{\"index\":\"{n}\",\"instruction\":\"{n}番の色は何ですか。\",\"input\":\"\",\"output\":\"赤です。\",\"category\":\"open_qa\"}}\n"
        )
    };
    fs::write(
        folder.join("records.jsonl"),
        (0..16).map(line).collect::<String>() + "{\"bad\": 1}\n",
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_become_a_data_set_once() {
    let served = Served::start().await;
    write_records(served.path());
    let none = served
        .run(&["datasets", "list", "-o", "json"], "")
        .await
        .expect(0);
    assert_eq!(none.json(), serde_json::json!({}));
    served
        .run(&["datasets", "show", "mine"], "")
        .await
        .expect(3);
    served.run(&["jobs", "show", "nothing"], "").await.expect(3);
    served
        .run(&["jobs", "cancel", "nothing"], "")
        .await
        .expect(3);

    let first = served.prepare("mine").await;
    assert_eq!(
        (first["rows"].as_str(), first["rejected"].as_str()),
        (Some("16"), Some("1")),
        "{first}"
    );
    let again = served.prepare("mine").await;
    assert_eq!(first["digest"], again["digest"]);
    let listed = served
        .run(&["datasets", "list", "-o", "json"], "")
        .await
        .expect(0)
        .json();
    assert_eq!(listed["datasets"].as_array().unwrap().len(), 1);
    let table = served.run(&["datasets", "list"], "").await.expect(0);
    assert!(
        table.stdout.starts_with("NAME  REVISION"),
        "{}",
        table.stdout
    );
    assert!(!table.stdout.contains('\x1b') && !table.stderr.contains('\x1b'));

    let fail = [
        "prepare",
        "records.jsonl",
        "--name",
        "strict",
        "--on-bad-record",
        "fail",
    ];
    served.run(&fail, "").await.expect(1);
    let bad_name = served
        .run(&["prepare", "records.jsonl", "--name", "../x"], "")
        .await
        .expect(2);
    assert!(bad_name.stderr.contains("name"), "{}", bad_name.stderr);
    let bad_base = served
        .run(&["prepare", "records.jsonl", "--base", "unknown"], "")
        .await;
    assert!([2, 3].contains(&bad_base.code), "{}", bad_base.stderr);
    served.running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn training_is_planned_watched_and_served() {
    let served = Served::start().await;
    write_records(served.path());
    served.prepare("mine").await;
    let recipe = "name = 'two-steps'\nmax_steps = 2\nbatch_size = 4\n[lora]\nrank = 2\n";
    fs::write(served.path().join("recipe.toml"), recipe).unwrap();
    fs::write(
        served.path().join("bad.toml"),
        recipe.replace("rank = 2", "rank = 0"),
    )
    .unwrap();
    let train = |recipe: &'static str, more: &'static [&'static str]| {
        [
            &[
                "train",
                "--recipe",
                recipe,
                "--dataset",
                "mine",
                "--alias",
                "mine",
            ][..],
            more,
        ]
        .concat()
    };
    let plan = served
        .run(&train("recipe.toml", &["--dry-run", "-o", "json"]), "")
        .await
        .expect(0);
    assert_eq!(plan.json()["steps"], "2");
    assert!(
        plan.stderr.contains("weights") && plan.stderr.contains("activations"),
        "{}",
        plan.stderr
    );
    let refused = served.run(&train("bad.toml", &[]), "").await.expect(2);
    assert!(
        refused.stderr.contains("recipe.lora.rank"),
        "{}",
        refused.stderr
    );

    let watched = served
        .run(&train("recipe.toml", &["--watch", "-o", "json"]), "")
        .await
        .expect(0)
        .json_lines();
    let steps = watched
        .iter()
        .filter(|update| update["step"].is_object())
        .count();
    assert_eq!(steps, 2, "{watched:?}");
    let last = watched.last().unwrap();
    assert_eq!(last["job"]["state"], "JOB_STATE_SUCCEEDED");
    let id = last["job"]["id"].as_str().unwrap();
    let shown = served
        .run(&["jobs", "show", id, "-o", "json"], "")
        .await
        .expect(0)
        .json();
    assert_eq!(shown["request"]["alias"], "mine");
    let done = served.run(&["jobs", "cancel", id], "").await.expect(5);
    assert!(!done.stderr.is_empty());

    let aliases = served
        .run(&["adapters", "aliases", "-o", "json"], "")
        .await
        .expect(0)
        .json();
    assert_eq!(aliases["aliases"][0]["generation"], last["job"]["result"]);
    let events = served
        .run(&["events", "--all", "-n", "3", "-o", "json"], "")
        .await
        .expect(0)
        .json_lines();
    assert!(
        events
            .iter()
            .all(|event| event["specversion"] == "1.0" && event["data"].is_object()),
        "{events:?}"
    );
    what_is_old_and_unreached_is_deleted(&served).await;
    served
        .run(&["datasets", "show", "mine"], "")
        .await
        .expect(0);
    served.running.stop().await.unwrap();
}

async fn what_is_old_and_unreached_is_deleted(served: &Served) {
    let gc = served
        .run(&["gc", "--dry-run", "-o", "json"], "")
        .await
        .expect(0);
    assert_eq!(gc.stdout, "", "nothing is a day old");
    let old = served
        .path()
        .join("data/store/uploads")
        .join("e".repeat(64));
    fs::write(&old, "left behind").unwrap();
    let two_days = std::time::Duration::from_secs(2 * 86_400);
    let file = fs::File::options().write(true).open(&old).unwrap();
    file.set_modified(std::time::SystemTime::now() - two_days)
        .unwrap();
    let listed = served
        .run(&["gc", "--dry-run", "-o", "json"], "")
        .await
        .expect(0)
        .json();
    assert_eq!(
        (listed["deleted"].as_bool(), old.exists()),
        (Some(false), true)
    );
    served.run(&["gc"], "").await.expect(0);
    assert!(!old.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_of_another_precision_is_served_where_its_promotion_allows_it() {
    let served = Served::start().await;
    write_records(served.path());
    served.prepare("mine").await;
    let recipe = "base_precision = 'nf4'\npromote = 'manual'\nmax_steps = 1\n[lora]\nrank = 2\n";
    fs::write(served.path().join("recipe.toml"), recipe).unwrap();
    let train = "train --recipe recipe.toml --dataset mine --alias mine --watch -o json";
    let words: Vec<&str> = train.split(' ').collect();
    let watched = served.run(&words, "").await.expect(0).json_lines();
    let generation = watched.last().unwrap()["job"]["result"].clone();
    let generation = generation.as_str().unwrap();

    let promote = ["adapters", "promote", generation, "--alias", "mine"];
    served.run(&promote, "").await.expect(0);
    let rejected = [
        "events",
        "adapter.rejected",
        "--all",
        "-n",
        "1",
        "-o",
        "json",
    ];
    let event = served.run(&rejected, "").await.expect(0).json();
    let reason = event["data"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("trained over nf4, this replica holds f32"),
        "{reason}"
    );

    let allowed = [&promote[..], &["--allow-base-mismatch", "-o", "json"]].concat();
    let alias = served.run(&allowed, "").await.expect(0).json();
    assert_eq!(
        (&alias["revision"], &alias["allowBaseMismatch"]),
        (&"2".into(), &true.into())
    );
    let loaded = ["events", "adapter.loaded", "--all", "-n", "1", "-o", "json"];
    let event = served.run(&loaded, "").await.expect(0).json();
    let mismatch = &event["data"]["baseMismatch"];
    assert_eq!(
        (&mismatch["trainedPrecision"], &mismatch["servedPrecision"]),
        (&"nf4".into(), &"f32".into())
    );
    let number = |field: &str| mismatch[field].as_f64().unwrap();
    let (largest, mean) = (
        number("maxAbsLogitDifference"),
        number("meanAbsLogitDifference"),
    );
    assert!(
        largest >= mean && mean > 0.0 && number("samples") > 0.0,
        "{mismatch}"
    );
    let generate = "generate --adapter mine --instruction 誰ですか。 --max-new-tokens 2";
    let words: Vec<&str> = generate.split(' ').collect();
    served.run(&words, "").await.expect(0);
    served.running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_in_every_way() {
    let served = Served::start().await;
    let short = ["--greedy", "--max-new-tokens", "4"];
    let generate = [
        &["generate", "--instruction", "山は？", "-o", "json"][..],
        &short,
    ]
    .concat();
    let lines = served.run(&generate, "").await.expect(0).json_lines();
    assert!(
        lines[0]["started"].is_object() && lines.last().unwrap()["finished"].is_object(),
        "{lines:?}"
    );
    let raw = served
        .run(&[&["generate"][..], &short].concat(), "昔々\n")
        .await
        .expect(0);
    assert!(
        raw.stdout.ends_with('\n') && raw.stderr.contains("tokens"),
        "{}",
        raw.stderr
    );
    let wrong = served
        .run(&["generate", "--raw", "x", "--temperature", "NaN"], "")
        .await
        .expect(2);
    assert!(wrong.stderr.contains("temperature"), "{}", wrong.stderr);
    served
        .run(&["generate", "--raw", "x", "--adapter", "unknown"], "")
        .await
        .expect(3);

    let ask = [&["ask", "-", "-o", "json"][..], &short].concat();
    let asked = served
        .run(
            &ask,
            "{\"instruction\":\"山は？\",\"output\":\"ない\"}\n{\"instruction\":\"川は？\"}\n",
        )
        .await
        .expect(0);
    let answers = asked.json_lines();
    assert_eq!(
        (&answers[0]["right"], &answers[1]["right"]),
        (&false.into(), &serde_json::Value::Null)
    );
    assert!(asked.stderr.contains("right: 0/1"), "{}", asked.stderr);

    let chat = served
        .run(
            &[&["chat"][..], &short].concat(),
            "山は？\n\nquit\n川は？\n",
        )
        .await
        .expect(0);
    assert_eq!(
        chat.stderr.matches("tokens").count(),
        1,
        "nothing is answered after quit: {}",
        chat.stderr
    );
    let served_by = served
        .run(&["adapters", "served", "-o", "json"], "")
        .await
        .expect(0)
        .json();
    assert!(served_by["baseDigest"].is_string());
    served.running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_kept_and_ended() {
    let served = Served::start().await;
    let policy = "name = 'again'\ndataset = 'mine'\nbase = 'demo'\nalias = 'mine'\n[recipe]\nmax_steps = 1\n";
    fs::write(served.path().join("policy.toml"), policy).unwrap();
    let apply = ["policies", "apply", "policy.toml", "-o", "json"];
    let first = served.run(&apply, "").await.expect(0).json();
    assert_eq!(first["version"], "1");
    assert_eq!(
        served.run(&apply, "").await.expect(0).json()["version"],
        "1",
        "the same again changes nothing"
    );
    let listed = served.run(&["policies", "list"], "").await.expect(0);
    assert!(listed.stdout.contains("again"), "{}", listed.stdout);
    served
        .run(&["policies", "delete", "again"], "")
        .await
        .expect(0);
    served
        .run(&["policies", "show", "again"], "")
        .await
        .expect(3);
    served.running.stop().await.unwrap();
}
