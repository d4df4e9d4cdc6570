//! Adapters are swapped while answers run: all tokens of an answer are of one generation.

use togi_testing::wait_until;

use crate::adapters::{device_bytes, promote, publish_good};
use crate::harness::{BaseKind, Setup, greedy, question};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_during_swaps_are_entirely_the_one_or_the_other() {
    let setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let folder = setup.base_folder();
    let a = publish_good(&setup.store, &folder, 1).await;
    let b = publish_good(&setup.store, &folder, 2).await;
    promote(&setup.store, None, "main", &a).await;
    let system = setup.ready().await;
    let golden = async |generation: &str| {
        let answer = system
            .ask(question(generation, "問12", greedy(30)))
            .await
            .unwrap();
        (answer.text, answer.ids)
    };
    let (golden_a, golden_b) = (golden(&a).await, golden(&b).await);
    assert_ne!(golden_a, golden_b);
    let swap = async {
        for round in 0..12 {
            let next = if round % 2 == 0 { &b } else { &a };
            promote(&system.store, Some(&system.bus), "main", next).await;
            system.until_serving("main", next).await;
        }
    };
    let ask = async {
        let mut seen = (0, 0);
        for _ in 0..8 {
            let eight = (0..8).map(|_| system.ask(question("main", "問12", greedy(30))));
            for answer in futures::future::join_all(eight).await {
                let answer = answer.expect("no request fails during a swap");
                let is_a = answer.started.generation == a;
                let said = (answer.text, answer.ids);
                assert_eq!(
                    said,
                    if is_a {
                        golden_a.clone()
                    } else {
                        golden_b.clone()
                    }
                );
                if is_a { seen.0 += 1 } else { seen.1 += 1 }
            }
        }
        seen
    };
    let ((), seen) = tokio::join!(swap, ask);
    eprintln!("answers by generation: {seen:?}");
    assert_eq!(seen.0 + seen.1, 64);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_keeps_the_generation_that_it_started_with() {
    let mut setup = Setup::new(BaseKind::Random).await.with_nats().await;
    // The long answers wait for each other, so that the last has not begun when the alias moves.
    setup.config.engine.max_active = Some(1);
    let folder = setup.base_folder();
    let a = publish_good(&setup.store, &folder, 1).await;
    let b = publish_good(&setup.store, &folder, 2).await;
    promote(&setup.store, None, "main", &a).await;
    let system = setup.ready().await;
    let alone = system
        .ask(question("main", "問", greedy(150)))
        .await
        .unwrap();
    let mut running = Vec::new();
    for _ in 0..6 {
        running.push(
            system
                .open(question("main", "問", greedy(150)))
                .await
                .unwrap(),
        );
    }
    promote(&system.store, Some(&system.bus), "main", &b).await;
    system.until_serving("main", &b).await;
    for mut answer in running {
        answer.rest().await.unwrap();
        let answer = answer.whole().unwrap();
        assert_eq!(answer.started.generation, a);
        assert_eq!((&answer.text, &answer.ids), (&alone.text, &alone.ids));
    }
    wait_until("nothing uses the old generation", async || {
        system.replica.adapters_held().0.in_use == 0
    })
    .await;
    let next = system
        .ask(question("main", "問", greedy(150)))
        .await
        .unwrap();
    assert_eq!(next.started.generation, b);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reloaded_adapter_never_reuses_a_cached_state() {
    let mut setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let folder = setup.base_folder();
    let a = publish_good(&setup.store, &folder, 1).await;
    let b = publish_good(&setup.store, &folder, 2).await;
    // Each unloads the other.
    setup.config.adapters.device_bytes = Some(device_bytes(&folder));
    setup.config.adapters.host_bytes = Some(0);
    let system = setup.ready().await;
    // The same prompt every time, so that a state kept from it would be found again.
    let say = async |adapter: &str| {
        let answer = system
            .ask(question(adapter, "問12", greedy(60)))
            .await
            .unwrap();
        (answer.started.generation, answer.ids)
    };
    let swap = async |generation: &str| {
        promote(&system.store, Some(&system.bus), "main", generation).await;
        system.until_serving("main", generation).await;
        let (on_device, in_memory) = system.replica.adapters_held();
        assert_eq!((on_device.adapters, in_memory.adapters), (1, 0));
        let served = system.replica.served().unwrap();
        served.aliases[&"main".parse().unwrap()].adapter.loaded()
    };
    let base = say("").await;
    let loaded = swap(&a).await;
    let first = say("main").await;
    // The same alias, another generation.
    swap(&b).await;
    let second = say("main").await;
    assert_eq!((&first.0, &second.0), (&a, &b));
    assert!(first.1 != second.1 && first.1 != base.1 && second.1 != base.1);
    // The same generation, unloaded and loaded again.
    assert!(swap(&a).await > loaded, "it was loaded again");
    assert_eq!(say("main").await, first);
    swap(&b).await;
    assert_eq!(say("main").await, second);
    assert_eq!(say("").await, base);
    system.stop().await.unwrap();
}
