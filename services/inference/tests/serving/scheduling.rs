//! The scheduler from outside: pages, priorities, fairness, deadlines, and what is left after a
//! thousand requests.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use togi_common::random::nth;
use togi_model::{Device, memory};
use togi_proto::inference::v1::{FinishReason, GenerateRequest, Options, Priority};
use togi_testing::{wait_until, within};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::bases::{self, TABLE_LONGEST};
use crate::harness::{BaseKind, OpenAnswer, Setup, System, greedy, raw};

/// Longer than any test reads.
const LONG: u32 = TABLE_LONGEST as u32;

async fn narrow(change: impl FnOnce(&mut Setup)) -> System {
    let mut setup = Setup::new(BaseKind::Table).await;
    setup.config.engine.max_active = Some(1);
    change(&mut setup);
    setup.ready().await
}

/// Makes memory for this many pages.
fn set_pages(setup: &mut Setup, pages: u64) {
    let config = bases::write_table(&setup.base_folder());
    setup.config.engine.cache_bytes = Some(pages * memory::page(&config, Device::Cpu));
}

/// An answer that goes on until it is dropped.
async fn endless(system: &System) -> OpenAnswer {
    let mut answer = system.open(raw("", "か", greedy(LONG))).await.unwrap();
    answer.first_text().await;
    answer
}

fn batch(max_new_tokens: u32) -> GenerateRequest {
    let options = Options {
        priority: Priority::Batch.into(),
        ..greedy(max_new_tokens)
    };
    raw("", "か", options)
}

fn within_seconds(seconds: f64) -> GenerateRequest {
    let options = Options {
        max_seconds: Some(seconds),
        ..greedy(LONG)
    };
    raw("", "か", options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_with_random_ends_and_cancels_leave_nothing_behind() {
    const CLIENTS: u64 = 20;
    const EACH: usize = 50;
    let mut setup = Setup::new(BaseKind::Table).await;
    // Some wait for a place, and some for pages.
    set_pages(&mut setup, 40);
    let system = Arc::new(setup.ready().await);
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let system = system.clone();
            tokio::spawn(async move {
                let mut drawn = 0;
                let mut below = |limit: u32| {
                    drawn += 1;
                    (nth(client, drawn) >> 32) as u32 % limit
                };
                let mut client = system.client().await;
                for _ in 0..EACH {
                    let tokens = 1 + below(150);
                    let prompt = "か".repeat(1 + below(100) as usize);
                    let mut request = raw("", &prompt, greedy(tokens));
                    if below(4) == 0 {
                        let options = request.options.as_mut().unwrap();
                        options.priority = Priority::Batch.into();
                    }
                    let answer = client.generate(request).await.unwrap();
                    let mut answer = OpenAnswer::new(answer.into_inner());
                    // Half of the clients go away: before the first token, or somewhere later.
                    if below(2) == 0 {
                        for _ in 0..below(tokens) {
                            answer.next().await.unwrap();
                        }
                        continue;
                    }
                    answer.rest().await.unwrap();
                    let whole = answer.whole().unwrap();
                    let circle = "きくけこか".chars().cycle();
                    assert_eq!(whole.text, circle.take(tokens as usize).collect::<String>());
                }
            })
        })
        .collect();
    for task in tasks {
        within("a client's requests", task).await.unwrap();
    }
    system.until_empty().await;
    assert_eq!(system.replica.load().unwrap().pages_free(), 40);
    let system = Arc::into_inner(system).unwrap();
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_wait_for_pages_and_one_that_never_fits_is_refused_with_the_figures() {
    let system = narrow(|setup| {
        setup.config.engine.max_active = Some(8);
        set_pages(setup, 4);
    })
    .await;
    let refused = system.ask(raw("", "か", greedy(200))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let says = "need 7 pages of keys and values, and this replica has 4, for 128 tokens";
    assert!(refused.message().contains(says), "{refused}");
    let field = refused.get_details_bad_request().unwrap();
    let field = &field.field_violations[0].field;
    assert_eq!(field, "options.max_new_tokens");
    // Three pages, and then two more that are not there.
    let mut first = system.open(raw("", "か", greedy(90))).await.unwrap();
    let mut second = system.open(raw("", "か", greedy(60))).await.unwrap();
    for answer in [&mut first, &mut second] {
        within("the answer", answer.rest()).await.unwrap();
    }
    let (first, second) = (first.whole().unwrap(), second.whole().unwrap());
    assert_eq!((first.ids.len(), second.ids.len()), (90, 60));
    system.until_empty().await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_when_to_come_back() {
    let system = narrow(|setup| setup.config.engine.max_waiting_tokens = 20).await;
    let running = endless(&system).await;
    let _waits = system.open(raw("", "かかかか", greedy(4))).await.unwrap();
    let load = system.replica.load().unwrap();
    wait_until("it waits", async || load.is_blocked()).await;
    let refused = system.ask(raw("", &"か".repeat(20), greedy(4))).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("come back in"), "{refused}");
    let retry = refused.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.unwrap() >= Duration::from_secs(1));
    // A shorter one still finds room.
    let _also = system.open(raw("", "か", greedy(4))).await.unwrap();
    drop(running);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_beyond_its_time_is_dropped() {
    let system = narrow(|_| {}).await;
    let running = endless(&system).await;
    let error = system.ask(within_seconds(0.05)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(
        error.message().contains("before its answer began"),
        "{error}"
    );
    // The call's own deadline does the same.
    let mut request = Request::new(raw("", "か", greedy(LONG)));
    let metadata = request.metadata_mut();
    metadata.insert("grpc-timeout", "50m".parse().unwrap());
    let answer = system.client().await.generate(request).await;
    let error = match answer {
        Ok(answer) => OpenAnswer::new(answer.into_inner())
            .rest()
            .await
            .unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    system.until_inside(1, 0).await;
    drop(running);
    system.until_empty().await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_where_it_is_when_its_time_is_over() {
    let system = narrow(|setup| setup.config.engine.max_active = Some(16)).await;
    // Others slow it down, so that it cannot reach its end.
    let mut others = Vec::new();
    for _ in 0..15 {
        others.push(endless(&system).await);
    }
    let answer = system.ask(within_seconds(0.5)).await.unwrap();
    assert_eq!(answer.finished.reason(), FinishReason::Deadline);
    assert!(answer.ids.len() < LONG as usize);
    let circle: String = "きくけこか"
        .chars()
        .cycle()
        .take(answer.ids.len())
        .collect();
    assert_eq!(answer.text, circle);
    drop(others);
    system.until_empty().await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_requests_begin_last_and_leave_half_of_the_places() {
    let system = narrow(|_| {}).await;
    let running = endless(&system).await;
    let mut patient = system.open(batch(4)).await.unwrap();
    system.until_inside(1, 1).await;
    let mut urgent = system.open(raw("", "か", greedy(4))).await.unwrap();
    system.until_inside(1, 2).await;
    drop(running);
    for answer in [&mut urgent, &mut patient] {
        within("the answer", answer.rest()).await.unwrap();
    }
    // The batch request arrived before the other, and began when that had ended.
    let urgent = urgent.whole().unwrap().finished;
    let patient = patient.whole().unwrap().finished;
    assert!(patient.seconds_to_first_token > urgent.seconds);
    system.stop().await.unwrap();

    let system = narrow(|setup| setup.config.engine.max_active = Some(4)).await;
    let mut patient = Vec::new();
    for _ in 0..4 {
        patient.push(system.open(batch(LONG)).await.unwrap());
    }
    system.until_inside(2, 2).await;
    system.ask(raw("", "か", greedy(4))).await.unwrap();
    system.until_inside(2, 2).await;
    drop(patient);
    system.until_empty().await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_many_requests_does_not_hold_up_another() {
    let system = narrow(|_| {}).await;
    let running = endless(&system).await;
    let mut answers = Vec::new();
    for number in 0..6 {
        let client = if number < 5 { "many" } else { "one" };
        let answer = system.open_as(client, raw("", "か", greedy(300))).await;
        answers.push((client, answer.unwrap()));
        system.until_inside(1, number + 1).await;
    }
    drop(running);
    let ended = Mutex::new(Vec::new());
    let rest = answers.into_iter().map(async |(client, mut answer)| {
        answer.rest().await.unwrap();
        ended.lock().push(client);
    });
    within("the answers", futures::future::join_all(rest)).await;
    // Each was served nothing yet, so that the first of the many comes first.
    assert_eq!(ended.into_inner()[..2], ["many", "one"]);
    // A quarter of the queue is kept for those that have no request inside.
    let mut waiting = vec![endless(&system).await];
    for _ in 0..48 {
        let answer = system.open_as("many", raw("", "か", greedy(4))).await;
        waiting.push(answer.unwrap());
    }
    let refused = system.open_as("many", raw("", "か", greedy(4))).await;
    assert_eq!(refused.err().unwrap().code(), Code::ResourceExhausted);
    let one = system.open_as("one", raw("", "か", greedy(4))).await;
    drop((one.unwrap(), waiting));
    let wrong = system.open_as("", raw("", "か", greedy(1))).await;
    let wrong = wrong.err().unwrap();
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_frees_its_place_while_its_prompt_is_read() {
    let system = narrow(|setup| {
        setup.config.engine.prefill_chunk = 1;
        setup.config.engine.prompt_tokens_per_round = Some(1);
    })
    .await;
    let long = "か".repeat(TABLE_LONGEST - 100);
    let reading = system.open(raw("", &long, greedy(4))).await.unwrap();
    system.until_inside(1, 0).await;
    drop(reading);
    system.until_empty().await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_the_same_alone_and_where_others_share_the_budget() {
    let mut setup = Setup::new(BaseKind::Random).await;
    setup.config.engine.prefill_chunk = 8;
    setup.config.engine.prompt_tokens_per_round = Some(20);
    let system = setup.ready().await;
    let request = |number: usize| {
        let options = Options {
            seed: Some(number as u64),
            max_new_tokens: Some(30),
            temperature: Some(1.5),
            ..Options::default()
        };
        raw("", &"かきくけこさ".repeat(1 + number), options)
    };
    let mut alone = Vec::new();
    for number in 0..16 {
        alone.push(system.ask(request(number)).await.unwrap().ids);
    }
    let together = (0..16).map(|number| system.ask(request(number)));
    let together = within("the answers", futures::future::join_all(together)).await;
    let together: Vec<_> = together
        .into_iter()
        .map(|answer| answer.unwrap().ids)
        .collect();
    assert_eq!(together, alone);
    system.stop().await.unwrap();
}
