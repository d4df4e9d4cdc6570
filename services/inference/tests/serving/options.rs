//! The options that change which tokens are drawn and when an answer ends.

use togi_proto::inference::v1::{FinishReason, Options};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{BaseKind, Setup, System, greedy, question, raw};
use crate::vocabulary;

async fn table() -> System {
    Setup::new(BaseKind::Table).await.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temperature_zero_is_greedy() {
    let system = Setup::new(BaseKind::Random).await.ready().await;
    let likeliest = system.ask(question("", "問3", greedy(30))).await.unwrap();
    for seed in [1, 2] {
        let options = Options {
            temperature: Some(0.0),
            greedy: None,
            seed: Some(seed),
            ..greedy(30)
        };
        let cold = system.ask(question("", "問3", options)).await.unwrap();
        assert_eq!(cold.ids, likeliest.ids);
    }
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_be_kept_from_ending() {
    let system = table().await;
    let ask = async |options| system.ask(raw("", "う", options)).await.unwrap();
    let (last, eos) = (vocabulary::id("え"), vocabulary::EOS);
    // EOS would be the second token.
    let early = ask(Options {
        min_new_tokens: Some(1),
        ..greedy(6)
    })
    .await;
    assert_eq!(early.ids, [last, eos]);
    let longer = ask(Options {
        min_new_tokens: Some(2),
        ..greedy(6)
    })
    .await;
    // う is the likeliest where the table's token is forbidden, because it follows no token.
    assert_eq!(longer.ids, [last, vocabulary::id("う"), last, eos]);
    // EOS repeats in this base when it does not end the answer.
    let ignored = ask(Options {
        ignore_eos: Some(true),
        min_new_tokens: Some(4),
        ..greedy(4)
    })
    .await;
    assert_eq!(ignored.ids, [last, eos, eos, eos]);
    assert_eq!(ignored.finished.reason(), FinishReason::Length);
    assert_eq!(ignored.text, "え");
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_tokens_may_end_an_answer() {
    let system = table().await;
    let stop = vocabulary::id("け");
    let ask = async |options| system.ask(raw("", "か", options)).await.unwrap();
    let ended = ask(Options {
        stop_token_ids: vec![0, stop],
        ignore_eos: Some(true),
        ..greedy(50)
    })
    .await;
    assert_eq!((ended.text.as_str(), ended.ids.len()), ("きく", 3));
    assert_eq!(ended.ids[2], stop);
    assert_eq!(ended.finished.reason(), FinishReason::Eos);
    // It may not come too early either.
    let later = ask(Options {
        stop_token_ids: vec![stop],
        min_new_tokens: Some(4),
        ..greedy(50)
    })
    .await;
    assert_eq!(later.ids[..2], ended.ids[..2]);
    assert!(!later.ids[..4].contains(&stop));
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_with_several_ends_ends_with_any_of_them() {
    let setup = Setup::new(BaseKind::Table).await;
    let ids = [vocabulary::id("け"), vocabulary::id("い")];
    let text = format!(r#"{{"eos_token_id": [{}, {}]}}"#, ids[0], ids[1]);
    std::fs::write(setup.base_folder().join("generation_config.json"), text).unwrap();
    let system = setup.ready().await;
    for (prompt, text) in [("か", "きく"), ("<NL>", "あ"), ("う", "え")] {
        let answer = system.ask(raw("", prompt, greedy(50))).await.unwrap();
        assert_eq!(answer.text, text);
        assert_eq!(answer.finished.reason(), FinishReason::Eos);
    }
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn penalties_count_the_answer_and_a_bias_chooses() {
    let system = table().await;
    let ask = async |options| system.ask(raw("", "なか", options)).await.unwrap();
    // The next token of the table has a logit of about 17.9, and all others a little below 0.
    let other = vocabulary::id("ね");
    let biased = |bias, options| {
        let logit_bias = [(other, bias)].into();
        ask(Options {
            logit_bias,
            ..options
        })
    };
    assert_eq!(biased(100.0, greedy(3)).await.ids, [other; 3]);
    let plain = ask(greedy(15)).await;
    assert_eq!(plain.text, "きくけこかきくけこかきくけこか");
    let presence = || Options {
        presence_penalty: Some(2.0),
        ..greedy(15)
    };
    let frequency = || Options {
        frequency_penalty: Some(2.0),
        ..greedy(15)
    };
    // The prompt's か is not counted: the first token that comes again is the sixth.
    for options in [presence(), frequency()] {
        let held = biased(17.0, options).await;
        assert_eq!(held.ids[..5], plain.ids[..5]);
        assert_eq!(held.ids[5], other);
    }
    // Presence weighs no more the second time, frequency does.
    assert_eq!(biased(14.5, presence()).await.ids, plain.ids);
    let held = biased(14.5, frequency()).await;
    assert_eq!(held.ids[..10], plain.ids[..10]);
    assert_eq!(held.ids[10], other);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_out_of_their_limits_are_refused_by_name() {
    let system = table().await;
    type Set = fn(&mut Options);
    let outside = vocabulary::size() as u32;
    let cases: Vec<(&str, Set)> = vec![
        ("min_new_tokens", |o| o.min_new_tokens = Some(257)),
        ("presence_penalty", |o| o.presence_penalty = Some(2.1)),
        ("frequency_penalty", |o| o.frequency_penalty = Some(-2.1)),
        ("logit_bias", |o| o.logit_bias = [(1, 100.5)].into()),
        ("logprobs", |o| o.logprobs = Some(21)),
        ("prompt_logprobs", |o| o.prompt_logprobs = Some(21)),
        ("stop_token_ids", |o| o.stop_token_ids = vec![1; 65]),
        ("n", |o| o.n = Some(0)),
        ("n", |o| o.n = Some(9)),
        ("logit_bias", |o| o.logit_bias = [(u32::MAX, 1.0)].into()),
        ("stop_token_ids", |o| o.stop_token_ids = vec![u32::MAX]),
    ];
    for (field, set) in cases {
        let mut options = Options::default();
        set(&mut options);
        let status = system.ask(raw("", "あ", options)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        let details = status.get_details_bad_request().expect("a field");
        assert_eq!(
            details.field_violations[0].field,
            format!("options.{field}")
        );
    }
    // The last token of the vocabulary is allowed, and the next is not.
    for (id, code) in [(outside - 1, Code::Ok), (outside, Code::InvalidArgument)] {
        let options = Options {
            logit_bias: [(id, 0.5)].into(),
            stop_token_ids: vec![id],
            ..greedy(1)
        };
        let answer = system.ask(raw("", "あ", options)).await;
        assert_eq!(answer.map_or_else(|e| e.code(), |_| Code::Ok), code);
    }
    assert_eq!(system.waiting() + system.active(), 0);
    system.stop().await.unwrap();
}
