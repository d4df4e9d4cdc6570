//! Several answers to one prompt.

use togi_proto::inference::v1::Options;
use togi_testing::{wait_until, within};
use tonic::Code;

use crate::harness::{BaseKind, Setup, greedy, question, raw};

fn sampled(seed: u64) -> Options {
    Options {
        seed: Some(seed),
        max_new_tokens: Some(30),
        temperature: Some(1.2),
        top_p: Some(1.0),
        top_k: Some(0),
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_n_answers_is_that_of_its_seed_alone() {
    let system = Setup::new(BaseKind::Random).await.ready().await;
    for seed in [7, u64::MAX - 1] {
        let options = Options {
            n: Some(4),
            logprobs: Some(2),
            prompt_logprobs: Some(0),
            ..sampled(seed)
        };
        let answers = system.ask_all(question("", "問1", options)).await.unwrap();
        for (answer, choice) in answers.iter().zip(0u64..) {
            let options = Options {
                logprobs: Some(2),
                ..sampled(seed.wrapping_add(choice))
            };
            let alone = system.ask(question("", "問1", options)).await.unwrap();
            assert_eq!((&answer.ids, &answer.text), (&alone.ids, &alone.text));
            assert_eq!(answer.logprobs, alone.logprobs);
            assert_eq!(answer.finished.reason, alone.finished.reason);
            assert_eq!(answer.started.seed, seed);
        }
        assert_ne!(answers[0].ids, answers[1].ids);
        // The prompt is told once.
        let told = answers.iter().map(|answer| answer.prompt_logprobs.len());
        let tokens = answers[0].started.prompt_tokens as usize;
        assert_eq!(told.collect::<Vec<_>>(), [tokens, 0, 0, 0]);
    }
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n_answers_take_n_places() {
    let mut setup = Setup::new(BaseKind::Table).await;
    setup.config.engine.max_active = Some(2);
    setup.config.engine.max_waiting = 2;
    let system = setup.ready().await;
    let times = |n, max| {
        let options = Options {
            n: Some(n),
            ..greedy(max)
        };
        raw("", "か", options)
    };
    let refused = system.ask_all(times(5, 4)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let four = system.ask_all(times(4, 4)).await.unwrap();
    for answer in four {
        assert_eq!(answer.text, "きくけこ");
    }
    wait_until("all permits are free", async || {
        system.active() + system.waiting() == 0
    })
    .await;
    // A client that goes away leaves all its places.
    let mut client = system.client().await;
    let mut long = client.generate(times(3, 4000)).await.unwrap().into_inner();
    within("the start", long.message()).await.unwrap();
    wait_until("one waits", async || {
        (system.active(), system.waiting()) == (2, 1)
    })
    .await;
    let refused = system.ask_all(times(2, 4)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    drop(long);
    wait_until("no request is inside", async || {
        system.active() + system.waiting() == 0
    })
    .await;
    system.stop().await.unwrap();
}
