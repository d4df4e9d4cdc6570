//! The pool of adapters on the device from outside: more adapters than it holds, all of it in use,
//! adapters that can never be in it, and promotions while all of this goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::StreamExt;
use togi_common::random::nth;
use togi_model::adapter::TENSORS_FILE;
use togi_proto::inference::v1::Options;
use togi_runtime::bus::reader::Start;
use togi_runtime::config::StoreConfig;
use togi_runtime::events::{Event, EventKind};
use togi_runtime::{Store, layout};
use togi_testing::http::{Answer, answering_by};
use togi_testing::{wait_until, within};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::adapters::{device_bytes, draft, files_of_rank, promote, publish, publish_good};
use crate::bases::TABLE_LONGEST;
use crate::harness::{BaseKind, Setup, System, greedy, question, raw};

const PROMPTS: [&str; 3] = ["問", "問12", "答3"];

/// S3's listing of nothing.
const EMPTY_LISTING: &str = "<?xml version=\"1.0\"?><ListBucketResult><Name>togi</Name>\
    <KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>";

/// The text and ids of an answer.
type Said = (String, Vec<u32>);

async fn say(system: &System, adapter: &str, prompt: usize) -> Result<(String, Said), Code> {
    let options = Options {
        temperature: Some(1.0),
        seed: Some(prompt as u64),
        max_new_tokens: Some(24),
        ..Options::default()
    };
    let asked = question(adapter, PROMPTS[prompt], options);
    let answer = system.ask(asked).await.map_err(|status| status.code())?;
    Ok((answer.started.generation, (answer.text, answer.ids)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_pool_answers_as_a_large_one_while_aliases_move() {
    const ALIASES: [&str; 3] = ["one", "two", "three"];
    const CLIENTS: u64 = 6;
    const EACH: u64 = 25;
    let setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let folder = setup.base_folder();
    let mut generations = Vec::new();
    for seed in 1..=7 {
        generations.push(publish_good(&setup.store, &folder, seed).await);
    }
    for alias in ALIASES {
        promote(&setup.store, None, alias, &generations[0]).await;
    }
    let large = setup.ready().await;
    let mut expected: HashMap<(String, usize), Said> = HashMap::new();
    for generation in &generations {
        for prompt in 0..PROMPTS.len() {
            let (from, said) = say(&large, generation, prompt).await.unwrap();
            assert_eq!(&from, generation);
            expected.insert((from, prompt), said);
        }
    }
    let texts: HashSet<_> = expected.values().collect();
    assert_eq!(texts.len(), expected.len(), "every answer is another");
    assert_eq!(large.replica.adapters_held().0.adapters, generations.len());

    // Three on the device, two in main memory.
    let mut setup = large.beside("replica-2");
    let limit = 3 * device_bytes(&folder);
    setup.config.adapters.device_bytes = Some(limit);
    setup.config.adapters.host_bytes = Some(device_bytes(&folder) + 1);
    let small = Arc::new(setup.ready().await);
    let (generations, expected) = (Arc::new(generations), Arc::new(expected));
    let refused = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (small, refused) = (small.clone(), refused.clone());
            let (generations, expected) = (generations.clone(), expected.clone());
            tokio::spawn(async move {
                for number in 0..EACH {
                    let drawn = nth(client, number) as usize;
                    let prompt = drawn % PROMPTS.len();
                    let by_alias = (drawn / 8).is_multiple_of(2);
                    let adapter = match by_alias {
                        true => ALIASES[drawn / 16 % ALIASES.len()],
                        false => &generations[drawn / 16 % generations.len()],
                    };
                    let (from, said) = loop {
                        match say(&small, adapter, prompt).await {
                            Ok(said) => break said,
                            Err(code) => assert_eq!(code, Code::ResourceExhausted),
                        }
                        refused.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    };
                    assert!(by_alias || from == adapter, "{from} answers for {adapter}");
                    assert_eq!(said, expected[&(from, prompt)]);
                    let held = small.replica.adapters_held().0;
                    assert!(held.bytes <= limit, "{held:?}");
                }
            })
        })
        .collect();
    let ended = AtomicBool::new(false);
    let promotions = async {
        let mut moved = 0;
        while !ended.load(Ordering::Relaxed) {
            let drawn = nth(99, moved) as usize;
            let (alias, next) = (ALIASES[drawn % 3], &generations[drawn / 4 % 7]);
            promote(&small.store, Some(&small.bus), alias, next).await;
            small.until_serving(alias, next).await;
            moved += 1;
        }
        moved
    };
    let ask = async {
        for client in clients {
            client.await.unwrap();
        }
        ended.store(true, Ordering::Relaxed);
    };
    let (moved, ()) = tokio::join!(promotions, ask);
    eprintln!("{moved} promotions, {refused:?} requests refused");
    small.until_empty().await;
    wait_until("three are on the device, and unused", async || {
        let held = small.replica.adapters_held().0;
        (held.adapters, held.in_use) == (3, 0)
    })
    .await;
    let in_memory = small.replica.adapters_held().1;
    assert!((1..=2).contains(&in_memory.adapters), "{in_memory:?}");
    let small = Arc::into_inner(small).expect("no client is left");
    small.stop().await.unwrap();
    large.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_all_in_use_says_when_to_come_back() {
    let mut setup = Setup::new(BaseKind::Table).await;
    let folder = setup.base_folder();
    setup.config.engine.max_active = Some(1);
    setup.config.adapters.device_bytes = Some(device_bytes(&folder));
    let a = publish_good(&setup.store, &folder, 1).await;
    let b = publish_good(&setup.store, &folder, 2).await;
    promote(&setup.store, None, "main", &b).await;
    let system = setup.ready().await;
    let endless = raw("", "か", greedy(TABLE_LONGEST as u32));
    let mut running = system.open(endless).await.unwrap();
    running.first_text().await;
    // It waits for a place, and has its adapter on the device already.
    let mut waits = system.open(raw(&a, "か", greedy(3))).await.unwrap();
    for name in ["main", &b] {
        let refused = system.ask(raw(name, "か", greedy(3))).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("requests use 1 adapters"));
        let retry = refused.get_details_retry_info().unwrap();
        assert!(retry.retry_delay.unwrap() >= std::time::Duration::from_secs(1));
    }
    // The base and the adapter that is there still have room.
    let also = system.open(raw(&a, "か", greedy(3))).await.unwrap();
    drop((running, also));
    within("the answer", waits.rest()).await.unwrap();
    assert_eq!(waits.whole().unwrap().started.generation, a);
    system.until_empty().await;
    let answer = system.ask(raw("main", "か", greedy(3))).await.unwrap();
    assert_eq!(answer.started.generation, b);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_larger_than_the_pool_is_refused_and_its_alias_serves_on() {
    let mut setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let folder = setup.base_folder();
    let limit = device_bytes(&folder);
    setup.config.adapters.device_bytes = Some(limit);
    let good = publish_good(&setup.store, &folder, 1).await;
    let large = {
        let mut made = draft(&folder, 2);
        made.files = files_of_rank(&crate::bases::write_random(&folder), 8, 2);
        publish(&setup.store, made).await
    };
    promote(&setup.store, None, "main", &good).await;
    let system = setup.ready().await;
    let before = system.ask(question("main", "問", greedy(9))).await.unwrap();
    let kinds = [EventKind::AdapterRejected];
    let mut events = system.bus.events(&kinds, Start::New).await.unwrap();
    promote(&system.store, Some(&system.bus), "main", &large).await;
    let event = within("the refusal", events.next()).await.unwrap().event;
    let Event::AdapterRejected(event) = event else {
        panic!("{event:?}")
    };
    assert_eq!((event.alias.as_str(), &event.generation), ("main", &large));
    for part in [
        format!("adapters.device_bytes allows {limit}"),
        format!("it takes {} bytes", 2 * limit),
    ] {
        assert!(event.reason.contains(&part), "{}", event.reason);
    }
    let after = system.ask(question("main", "問", greedy(9))).await.unwrap();
    assert_eq!(after.started.generation, good);
    assert_eq!((before.text, before.ids), (after.text, after.ids));
    let refused = system.ask(question(&large, "問", greedy(1))).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_serves_more_aliases_than_its_device_and_memory_hold() {
    let mut setup = Setup::new(BaseKind::Random).await;
    let folder = setup.base_folder();
    setup.config.adapters.device_bytes = Some(2 * device_bytes(&folder));
    setup.config.adapters.host_bytes = Some(0);
    let mut generations = Vec::new();
    for seed in 1..=4 {
        let generation = publish_good(&setup.store, &folder, seed).await;
        promote(&setup.store, None, &format!("alias-{seed}"), &generation).await;
        generations.push(generation);
    }
    let system = setup.ready().await;
    // At the start none goes for another one.
    let (on_device, in_memory) = system.replica.adapters_held();
    assert_eq!((on_device.adapters, in_memory.adapters), (2, 0));
    for (seed, generation) in (1..).zip(&generations) {
        let asked = question(&format!("alias-{seed}"), "問", greedy(1));
        let answer = system.ask(asked).await.unwrap();
        assert_eq!(&answer.started.generation, generation);
    }
    wait_until("two are on the device, and unused", async || {
        let held = system.replica.adapters_held().0;
        (held.adapters, held.in_use) == (2, 0)
    })
    .await;
    system.stop().await.unwrap();
}

/// A store that answers as an empty one, and holds what is asked about adapters.
async fn store_that_holds_adapters() -> Store {
    let probes = AtomicU64::new(0);
    let endpoint = answering_by(move |request| {
        let answer = |status, etag, body: &str| {
            Some(Answer {
                status,
                etag,
                body: body.to_owned(),
            })
        };
        if request.starts_with("PUT") {
            return match probes.fetch_add(1, Ordering::Relaxed) {
                0 => answer("200 OK", Some("\"1\""), ""),
                _ => answer("412 Precondition Failed", None, ""),
            };
        }
        if request.starts_with("DELETE") {
            return answer("204 No Content", None, "");
        }
        if request.contains("list-type=2") {
            return answer("200 OK", None, EMPTY_LISTING);
        }
        None
    });
    let options = [
        ("endpoint", endpoint.as_str()),
        ("allow_http", "true"),
        ("access_key_id", "key"),
        ("secret_access_key", "secret"),
    ];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = StoreConfig {
        url: "s3://togi".to_owned(),
        options: options.into(),
        secrets: None,
    };
    Store::open(&config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_for_its_adapter_ends_at_the_stop() {
    let mut setup = Setup::new(BaseKind::Table).await;
    setup.store = store_that_holds_adapters().await;
    let system = setup.ready().await;
    let stop = async {
        system.until_inside(0, 1).await;
        system.stopper.stop();
    };
    let generation = "ab".repeat(32);
    let asked = system.ask(raw(&generation, "か", greedy(1)));
    let (refused, ()) = within("the refusal", async { tokio::join!(asked, stop) }).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(refused.message(), "this replica is stopping");
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_pipe_in_an_adapters_folder_refuses_it_and_holds_no_other() {
    let setup = Setup::new(BaseKind::Table).await;
    let folder = setup.base_folder();
    let piped = publish_good(&setup.store, &folder, 1).await;
    let good = publish_good(&setup.store, &folder, 2).await;
    let tensors = layout::adapter_file(piped.parse().unwrap(), TENSORS_FILE);
    let tensors = folder.with_file_name("store").join(tensors.as_ref());
    std::fs::remove_file(&tensors).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&tensors).status();
    assert!(made.unwrap().success());
    let system = setup.ready().await;
    let asked = system.ask(raw(&piped, "か", greedy(1)));
    let refused = within("the refusal", asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("is a named pipe"), "{refused}");
    let answered = system.ask(raw(&good, "か", greedy(1)));
    assert!(within("the answer", answered).await.is_ok());
    system.stop().await.unwrap();
}
