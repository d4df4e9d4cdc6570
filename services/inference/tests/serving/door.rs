//! The door: permits are bounded, a client that goes away frees its permit, and the stop lets
//! answers finish.

use togi_proto::inference::v1::inference_service_server::InferenceService as _;
use togi_testing::{wait_until, within};
use tonic::{Code, Request};

use crate::bases::TABLE_LONGEST;
use crate::harness::{BaseKind, Setup, System, greedy, raw};

/// Longer than any test reads.
const LONG: u32 = TABLE_LONGEST as u32;

async fn narrow(max_active: usize, max_waiting: usize) -> System {
    let mut setup = Setup::new(BaseKind::Table).await;
    setup.config.engine.max_active = Some(max_active);
    setup.config.engine.max_waiting = max_waiting;
    setup.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_queue_requests_are_refused_at_once() {
    let system = narrow(1, 1).await;
    let mut first = system.open(raw("", "か", greedy(LONG))).await.unwrap();
    first.first_text().await;
    let second = system.open(raw("", "か", greedy(4))).await.unwrap();
    wait_until("one waits", async || {
        (system.active(), system.waiting()) == (1, 1)
    })
    .await;
    let refused = system.ask(raw("", "か", greedy(4))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // The request that waits is admitted when another one leaves.
    drop(first);
    let mut second = second;
    within("the second answer", second.rest()).await.unwrap();
    assert_eq!(second.whole().unwrap().text, "きくけこ");
    wait_until("all permits are free", async || {
        system.active() + system.waiting() == 0
    })
    .await;
    system.ask(raw("", "か", greedy(4))).await.unwrap();
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_stops_the_work() {
    let system = narrow(2, 2).await;
    let mut running = Vec::new();
    for _ in 0..2 {
        let mut answer = system.open(raw("", "か", greedy(LONG))).await.unwrap();
        answer.first_text().await;
        running.push(answer);
    }
    // This one waits; its client goes away too.
    running.push(system.open(raw("", "か", greedy(LONG))).await.unwrap());
    assert_eq!((system.active(), system.waiting()), (2, 1));
    drop(running);
    wait_until("no request is inside", async || {
        system.active() + system.waiting() == 0
    })
    .await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_progress_together() {
    let system = narrow(4, 4).await;
    let mut long = system.open(raw("", "か", greedy(LONG))).await.unwrap();
    long.first_text().await;
    // A short answer that began later ends before the long one.
    let short = system.ask(raw("", "あ", greedy(5))).await.unwrap();
    assert_eq!(short.text, "い\nあい\n");
    assert_eq!(system.active(), 1);
    drop(long);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_lets_answers_finish_and_refuses_requests() {
    let system = narrow(2, 2).await;
    let mut answer = system.open(raw("", "か", greedy(400))).await.unwrap();
    answer.first_text().await;
    system.stopper.stop();
    // Not over the port, because the server refuses connections too.
    let service = togi_inference::Service::new(system.replica.clone());
    let refused = service
        .generate(Request::new(raw("", "か", greedy(1))))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    within("the answer", answer.rest()).await.unwrap();
    assert_eq!(answer.whole().unwrap().ids.len(), 400);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_outlive_the_grace_time_break_off_as_unavailable() {
    let mut setup = Setup::new(BaseKind::Table).await;
    setup.config.stop.grace_seconds = 0;
    let system = setup.ready().await;
    let mut answer = system.open(raw("", "か", greedy(LONG))).await.unwrap();
    answer.first_text().await;
    system.stopper.stop();
    let broken = within("the end", answer.rest()).await.unwrap_err();
    assert_eq!(broken.code(), Code::Unavailable, "{broken}");
    system.stop().await.unwrap();
}
