//! The registry is followed to exactly the declared set: from the start, by events, and by listing
//! alone.

use futures::StreamExt;
use togi_runtime::bus::reader::Start;
use togi_runtime::events::{Event, EventKind};
use togi_runtime::registry::aliases::Aliases;
use togi_runtime::registry::revisions::BaseMismatch;
use togi_testing::{wait_until, within};

use crate::adapters::{promote, publish_good, roll_back};
use crate::bases::TABLE_LONGEST;
use crate::harness::{BaseKind, Setup, greedy, question, raw};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_starts_reaches_the_declared_set_and_follows_events() {
    let setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let folder = setup.base_folder();
    let first = publish_good(&setup.store, &folder, 1).await;
    let second = publish_good(&setup.store, &folder, 2).await;
    promote(&setup.store, None, "one", &first).await;
    promote(&setup.store, None, "two", &first).await;
    promote(&setup.store, None, "two", &second).await;
    let mut setup = setup;
    // The period is long, so that only an event can cause the reading.
    setup.config.adapters.reconcile_seconds = 3600.0;
    let system = setup.ready().await;
    let kinds = [EventKind::AdapterLoaded];
    let mut events = system.bus.events(&kinds, Start::All).await.unwrap();
    assert_eq!(system.serving("one").as_deref(), Some(first.as_str()));
    assert_eq!(system.serving("two").as_deref(), Some(second.as_str()));

    let third = publish_good(&system.store, &folder, 3).await;
    let promoted = std::time::Instant::now();
    promote(&system.store, Some(&system.bus), "one", &third).await;
    let answer = loop {
        let answer = system.ask(question("one", "問", greedy(1))).await.unwrap();
        if answer.started.generation == third {
            break answer;
        }
    };
    eprintln!("promotion to the first answer: {:?}", promoted.elapsed());
    assert_eq!(answer.ids.len(), 1);

    roll_back(&system.store, Some(&system.bus), "one", &first).await;
    system.until_serving("one", &first).await;

    let mut loaded = Vec::new();
    while loaded.len() < 3 {
        let event = within("an event", events.next()).await.unwrap().event;
        let Event::AdapterLoaded(event) = event else {
            panic!("{event:?}")
        };
        assert_eq!(event.replica, "replica-1");
        loaded.push((event.alias, event.generation));
    }
    assert!(
        loaded.contains(&("two".into(), second.clone())),
        "{loaded:?}"
    );
    assert!(loaded.contains(&("one".into(), third)), "{loaded:?}");

    let list = system.list().await;
    let served: Vec<_> = list
        .adapters
        .iter()
        .map(|a| (&*a.alias, &*a.generation))
        .collect();
    assert_eq!(served, [("one", &*first), ("two", &*second)]);
    assert_eq!(
        (list.replica.as_str(), list.rejected.len()),
        ("replica-1", 0)
    );
    assert_eq!(list.base_digest.len(), 64);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_reaches_every_replica_also_one_that_was_down() {
    let setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let folder = setup.base_folder();
    let first = publish_good(&setup.store, &folder, 1).await;
    let second = publish_good(&setup.store, &folder, 2).await;
    let one = setup.ready().await;
    let two = one.beside("replica-2").ready().await;
    let aliases = Aliases::new(&one.bus, &one.store);
    let main = "main".parse().unwrap();
    for generation in [&first, &second] {
        let generation = generation.parse().unwrap();
        let promoted = aliases.promote(&main, generation, BaseMismatch::Refused);
        promoted.await.unwrap();
    }
    one.until_serving("main", &second).await;
    two.until_serving("main", &second).await;
    two.stop().await.unwrap();
    let back = aliases.rollback(&main).await.unwrap();
    assert_eq!(
        (back.revision, back.generation().to_string()),
        (3, first.clone())
    );
    one.until_serving("main", &first).await;
    let two = one.beside("replica-2").ready().await;
    // A replica is ready when it serves what is declared.
    assert_eq!(two.serving("main").as_deref(), Some(first.as_str()));
    // Both follow the next promotion.
    let third = publish_good(&one.store, &folder, 3).await;
    let promoted = aliases.promote(&main, third.parse().unwrap(), BaseMismatch::Refused);
    promoted.await.unwrap();
    one.until_serving("main", &third).await;
    two.until_serving("main", &third).await;
    aliases.rollback(&main).await.unwrap();
    one.until_serving("main", &first).await;
    two.until_serving("main", &first).await;
    two.stop().await.unwrap();
    one.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_bus_the_store_alone_is_followed() {
    let setup = Setup::new(BaseKind::Random).await;
    let folder = setup.base_folder();
    let first = publish_good(&setup.store, &folder, 1).await;
    promote(&setup.store, None, "main", &first).await;
    let system = setup.ready().await;
    assert_eq!(system.serving("main").as_deref(), Some(first.as_str()));
    system.ask(question("main", "問", greedy(5))).await.unwrap();
    let second = publish_good(&system.store, &folder, 2).await;
    promote(&system.store, None, "main", &second).await;
    promote(&system.store, None, "other", &first).await;
    system.until_serving("main", &second).await;
    system.until_serving("other", &first).await;
    // An alias that is no longer declared is no longer served.
    let key = togi_runtime::layout::alias_revision(&"other".parse().unwrap(), 1);
    system.store.delete(&key).await.unwrap();
    wait_until("the alias is gone", async || {
        system.serving("other").is_none()
    })
    .await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_lists_its_adapters_in_the_bucket() {
    let system = Setup::new(BaseKind::Random)
        .await
        .with_nats()
        .await
        .ready()
        .await;
    let generation = publish_good(&system.store, &system.base_folder, 1).await;
    promote(&system.store, Some(&system.bus), "main", &generation).await;
    let entry = within("the entry", async {
        loop {
            // A replica may be ready before its bus is connected.
            let found = system.bus.replicas().get("replica-1").await.ok().flatten();
            let Some(value) = found.and_then(|entry| entry.value) else {
                tokio::task::yield_now().await;
                continue;
            };
            let entry: serde_json::Value = serde_json::from_slice(&value).unwrap();
            if entry["adapters"]["main"] == *generation {
                return entry;
            }
        }
    })
    .await;
    assert_eq!(entry["replica"], "replica-1");
    assert_eq!(entry["base"], "test");
    // A replica that stops removes its entry.
    system.stopper.stop();
    within("no entry", async {
        while system
            .bus
            .replicas()
            .get("replica-1")
            .await
            .unwrap()
            .is_some()
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_comes_late_and_goes_away_is_used_while_it_is_there() {
    let mut setup = Setup::new(BaseKind::Random).await.with_nats().await;
    // The period is long, so that only an event can cause the reading.
    setup.config.adapters.reconcile_seconds = 3600.0;
    setup.nats_mut().kill();
    let mut system = setup.ready().await;
    system.ask(question("", "問", greedy(5))).await.unwrap();
    system.nats_mut().resume();
    let generation = publish_good(&system.store, &system.base_folder, 1).await;
    wait_until("the bus is there", async || {
        system.bus.health().await.is_ok()
    })
    .await;
    promote(&system.store, Some(&system.bus), "main", &generation).await;
    system.until_serving("main", &generation).await;
    system.nats_mut().kill();
    let answer = system.ask(question("main", "問", greedy(5))).await.unwrap();
    assert_eq!(answer.started.generation, generation);
    system.nats_mut().resume();
    let next = publish_good(&system.store, &system.base_folder, 2).await;
    wait_until("the bus is back", async || {
        system.bus.health().await.is_ok()
    })
    .await;
    promote(&system.store, Some(&system.bus), "main", &next).await;
    system.until_serving("main", &next).await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_and_answers_are_counted() {
    let telemetry = togi_runtime::config::TelemetryConfig::default();
    let _guard = togi_runtime::telemetry::init(&telemetry, "inference").unwrap();
    let system = Setup::new(BaseKind::Random).await.ready().await;
    let generation = publish_good(&system.store, &system.base_folder, 1).await;
    promote(&system.store, None, "counted", &generation).await;
    system.until_serving("counted", &generation).await;
    system
        .ask(question("counted", "問", greedy(5)))
        .await
        .unwrap();
    let text = togi_runtime::telemetry::metrics_text();
    for name in [
        "gen_ai_server_time_to_first_token_seconds_count",
        "gen_ai_server_time_per_output_token_seconds_count",
        "togi_inference_time_between_tokens_seconds_count",
        "togi_inference_time_in_queue_seconds_count",
        "togi_inference_batch_size_count",
        "togi_inference_waiting_prompt_tokens",
        "togi_inference_pages_used",
        "togi_inference_pages_free",
        "togi_inference_pool_adapters{",
        "togi_inference_pool_adapters_used{",
        "togi_inference_pool_bytes{",
        "togi_inference_pool_limit_bytes{",
        "togi_inference_pool_load_duration_seconds_count{",
        "togi_inference_pool_evictions_total{",
        "togi_inference_pool_refusals_total",
        "togi_inference_time_for_adapter_seconds_count",
        "togi_inference_waiting_adapters{",
        "togi_inference_pages_cached",
        "togi_inference_prefix_hits_total",
        "togi_inference_prefix_tokens_total",
        "togi_inference_tokens",
        "togi_inference_answers",
        "togi_inference_active",
        "togi_inference_waiting",
        "togi_inference_adapter_loads",
        "togi_alias=\"counted\"",
        &generation,
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    let long = || raw("counted", &"かきくけ".repeat(20), greedy(5));
    for count in [0.0, 1.0] {
        let before = counted("togi_inference_prefix_hits_total", "");
        let answer = system.ask(long()).await.unwrap();
        // Other tests are counted too.
        assert!(counted("togi_inference_prefix_hits_total", "") >= before + count);
        assert_eq!(answer.finished.cached_prompt_tokens > 0, count > 0.0);
    }
    system.stop().await.unwrap();
    a_client_that_goes_away_while_it_waits_is_counted().await;
}

/// Returns a metric's value, of the series whose labels have a text.
fn counted(name: &str, label: &str) -> f64 {
    let text = togi_runtime::telemetry::metrics_text();
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with(name) && line.contains(label));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.map_or(0.0, |value| value.parse().unwrap())
}

async fn a_client_that_goes_away_while_it_waits_is_counted() {
    let mut setup = Setup::new(BaseKind::Table).await;
    setup.config.engine.max_active = Some(1);
    let system = setup.ready().await;
    let request = || raw("", "か", greedy(TABLE_LONGEST as u32));
    let mut running = system.open(request()).await.unwrap();
    running.first_text().await;
    let waits = system.open(request()).await.unwrap();
    system.until_inside(1, 1).await;
    let abandoned = || counted("togi_inference_answers", "\"abandoned\"");
    let before = abandoned();
    drop(waits);
    wait_until("it is counted", async || abandoned() > before).await;
    drop(running);
    system.stop().await.unwrap();
}
