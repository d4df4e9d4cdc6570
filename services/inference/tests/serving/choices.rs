//! Several answers to one prompt.

use togi_model::{Device, PAGE, memory};
use togi_proto::inference::v1::{FinishReason, Options};
use togi_testing::{wait_until, within};
use tonic::Code;

use crate::bases;
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

/// Without the prefix cache, which would find the prompt too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_begin_together_read_their_prompt_once() {
    let mut setup = Setup::new(BaseKind::Table).await;
    setup.config.engine.prefix_cache_bytes = Some(0);
    let system = setup.ready().await;
    let options = Options {
        n: Some(8),
        ..greedy(500)
    };
    let request = raw("", &"か".repeat(2000), options);
    let mut client = system.client().await;
    let mut answers = client.generate(request).await.unwrap().into_inner();
    let (mut messages, mut most) = (0, 0);
    while let Some(message) = answers.message().await.unwrap() {
        messages += u32::from(message.choice == 7);
        most = most.max(system.replica.cached_tokens() / PAGE);
    }
    // Its tokens and its end.
    assert_eq!(messages, 501);
    // The full pages of the prompt are those of all.
    let own = 500_usize.div_ceil(PAGE) + 1;
    let all = 2000 / PAGE + 8 * own;
    assert!((1..=all).contains(&most), "{most} pages of at most {all}");
    system.until_empty().await;
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_do_not_fit_together_begin_in_parts_and_are_the_same() {
    let prompt = "あかさた".repeat(20);
    let request = |seed, n| {
        let options = Options {
            n: Some(n),
            ..sampled(seed)
        };
        raw("", &prompt, options)
    };
    let mut expected = Vec::new();
    for (pages, cached) in [(100, 0), (100, 1 << 20), (9, 0), (9, 1 << 20), (4, 0)] {
        let mut setup = Setup::new(BaseKind::Random).await;
        let config = bases::write_random(&setup.base_folder());
        let engine = &mut setup.config.engine;
        engine.cache_bytes = Some(pages * memory::page(&config, Device::Cpu));
        engine.prefix_cache_bytes = Some(cached);
        let system = setup.ready().await;
        if expected.is_empty() {
            for seed in 7..12 {
                let alone = system.ask_all(request(seed, 1)).await.unwrap();
                expected.push((alone[0].ids.clone(), alone[0].text.clone()));
            }
        }
        for _ in 0..2 {
            let answers = system.ask_all(request(7, 5)).await.unwrap();
            let tokens = answers[0].started.prompt_tokens as usize;
            assert!((65..96).contains(&tokens), "{tokens}");
            let written = answers
                .iter()
                .map(|answer| (answer.ids.clone(), answer.text.clone()));
            assert_eq!(written.collect::<Vec<_>>(), expected, "{pages} pages");
        }
        system.until_empty().await;
        system.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_whose_time_is_over_before_their_prompt_is_read_all_end() {
    let system = Setup::new(BaseKind::Table).await.ready().await;
    for seconds in [0.001, 0.01, 0.05] {
        let options = Options {
            n: Some(4),
            max_seconds: Some(seconds),
            ..greedy(4000)
        };
        match system.ask_all(raw("", &"か".repeat(4000), options)).await {
            Ok(answers) => {
                for answer in answers {
                    let reason = answer.finished.reason();
                    // Some may be as long as the model allows already.
                    let early = [FinishReason::Deadline, FinishReason::Length];
                    assert!(early.contains(&reason), "{reason:?}");
                }
            }
            Err(late) => assert_eq!(late.code(), Code::DeadlineExceeded, "{late}"),
        }
        system.until_empty().await;
    }
    system.stop().await.unwrap();
}
