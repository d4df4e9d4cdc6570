//! The text, ids and end of answers, and requests that are refused.

use togi_proto::inference::v1::{FinishReason, GenerateRequest, Options};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{BaseKind, Setup, System, greedy, question, raw};
use crate::{adapters, bases, vocabulary};

async fn table() -> System {
    Setup::new(BaseKind::Table).await.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newlines_bytes_and_the_end_come_out_as_text() {
    let system = table().await;
    // After a whole prompt comes <NL>, as one piece; its text is a newline.
    let answer = system.ask(question("", "問", greedy(8))).await.unwrap();
    assert_eq!(answer.text, "あい\nあい\nあい");
    assert_eq!(answer.finished.reason(), FinishReason::Length);
    assert_eq!(answer.started.prompt_tokens, answer.finished.prompt_tokens);
    // <NL> in three pieces is a newline too; text that only begins like it is not lost at the end.
    let answer = system.ask(raw("", "さ", greedy(9))).await.unwrap();
    assert_eq!(answer.text, "\nさ\nさ<");
    assert_eq!(answer.ids.len(), 9);
    // Three bytes are one character; two alone show nothing.
    let answer = system.ask(raw("", "た", greedy(4))).await.unwrap();
    assert_eq!(answer.text, "日た");
    // EOS ends; its id is reported, it has no text.
    let answer = system.ask(raw("", "う", greedy(100))).await.unwrap();
    assert_eq!(
        (answer.text.as_str(), answer.finished.reason()),
        ("え", FinishReason::Eos)
    );
    assert_eq!(answer.ids, [vocabulary::id("え"), vocabulary::EOS]);
    assert!(answer.finished.seconds >= answer.finished.seconds_to_first_token);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newlines_of_a_raw_prompt_are_those_of_training() {
    let system = table().await;
    let typed = system.ask(raw("", "問\n", greedy(3))).await.unwrap();
    let written = system.ask(raw("", "問<NL>", greedy(3))).await.unwrap();
    assert_eq!(typed.text, "あい\n");
    assert_eq!((typed.text, typed.ids), (written.text, written.ids));
    // Text that looks like EOS does not end the prompt.
    let answer = system.ask(raw("", "</s>か", greedy(1))).await.unwrap();
    assert_eq!(answer.text, "き");
    assert!(answer.finished.prompt_tokens > 2);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_texts_end_the_answer_and_are_not_in_it() {
    let system = table().await;
    let ask = async |stops: &[&str], max: u32| {
        let stop = stops.iter().map(|&stop| stop.to_owned()).collect();
        system
            .ask(raw(
                "",
                "か",
                Options {
                    stop,
                    ..greedy(max)
                },
            ))
            .await
            .unwrap()
    };
    let answer = ask(&["けこ"], 100).await;
    assert_eq!(
        (answer.text.as_str(), answer.finished.reason()),
        ("きく", FinishReason::Stop)
    );
    assert_eq!(
        answer.ids.len(),
        4,
        "the ids of the stop text are reported: {:?}",
        answer.ids
    );
    // Text that only begins like a stop text is shown at the end.
    let answer = ask(&["けこけ"], 4).await;
    assert_eq!(
        (answer.text.as_str(), answer.finished.reason()),
        ("きくけこ", FinishReason::Length)
    );
    // The first that occurs wins; a newline can be one.
    let answer = ask(&["か", "くけこ"], 100).await;
    assert_eq!(answer.text, "き");
    let stop = vec!["\n".to_owned()];
    let answer = system
        .ask(question(
            "",
            "問",
            Options {
                stop,
                ..greedy(100)
            },
        ))
        .await
        .unwrap();
    assert_eq!(
        (answer.text.as_str(), answer.finished.reason()),
        ("あい", FinishReason::Stop)
    );
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_n_gram_ban_counts_the_prompt() {
    let system = table().await;
    let options = Options {
        no_repeat_ngram_size: Some(2),
        ..greedy(1)
    };
    let free = system.ask(raw("", "かき入か", greedy(1))).await.unwrap();
    let banned = system.ask(raw("", "かき入か", options)).await.unwrap();
    assert_eq!(free.text, "き");
    assert_ne!(banned.text, "き");
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_models_longest_sequence_ends_an_answer_and_refuses_a_prompt() {
    let system = Setup::new(BaseKind::Random).await.ready().await;
    let prompt = "入".repeat(bases::RANDOM_LONGEST - 4);
    let answer = system.ask(raw("", &prompt, greedy(100))).await.unwrap();
    assert!(answer.ids.len() <= 4, "{} ids", answer.ids.len());
    let too_long = "入".repeat(bases::RANDOM_LONGEST);
    let refused = system.ask(raw("", &too_long, greedy(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("192 tokens"), "{refused}");
    let huge = "入".repeat(200_000);
    let refused = system.ask(raw("", &huge, greedy(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(system.waiting() + system.active(), 0);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_seed_gives_the_same_answer_alone_and_in_company() {
    let system = Setup::new(BaseKind::Random).await.ready().await;
    let options = |seed| Options {
        seed: Some(seed),
        max_new_tokens: Some(40),
        temperature: Some(1.0),
        top_p: Some(1.0),
        top_k: Some(0),
        ..Options::default()
    };
    let alone = system.ask(question("", "問0", options(5))).await.unwrap();
    assert_eq!(alone.started.seed, 5);
    let others = (0..12u64).map(|n| question("", &format!("問{n}"), options(5 + n / 6)));
    let answers = futures::future::join_all(others.map(|request| system.ask(request))).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(
        (&answers[0].text, &answers[0].ids),
        (&alone.text, &alone.ids)
    );
    let other = system.ask(question("", "問0", options(6))).await.unwrap();
    assert_ne!(other.ids, alone.ids, "another seed, another draw");
    // A seed from the clock is reported, so that the answer can be repeated.
    let first = system
        .ask(question(
            "",
            "問",
            Options {
                seed: None,
                ..options(0)
            },
        ))
        .await
        .unwrap();
    let again = system
        .ask(question("", "問", options(first.started.seed)))
        .await
        .unwrap();
    assert_eq!(first.ids, again.ids);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_refused_by_field() {
    let system = table().await;
    let options = |options| question("", "問", options);
    let base = Options::default;
    let cases: Vec<(&str, GenerateRequest)> = vec![
        (
            "options.temperature",
            options(Options {
                temperature: Some(f32::NAN),
                ..base()
            }),
        ),
        (
            "options.temperature",
            options(Options {
                temperature: Some(-0.5),
                ..base()
            }),
        ),
        (
            "options.top_p",
            options(Options {
                top_p: Some(1.5),
                ..base()
            }),
        ),
        (
            "options.repetition_penalty",
            options(Options {
                repetition_penalty: Some(0.0),
                ..base()
            }),
        ),
        (
            "options.max_new_tokens",
            options(Options {
                max_new_tokens: Some(0),
                ..base()
            }),
        ),
        (
            "options.stop",
            options(Options {
                stop: vec![String::new()],
                ..base()
            }),
        ),
        ("instruction.instruction", question("", "", base())),
        ("instruction.instruction", question("", " \n", base())),
        ("raw", raw("", "", base())),
        ("prompt", GenerateRequest::default()),
        ("adapter", question("a/b", "問", base())),
        ("adapter", question("..", "問", base())),
        ("adapter", question("../../etc", "問", base())),
    ];
    for (field, request) in cases {
        let shown = format!("{request:?}");
        let status = system.ask(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{shown}: {status}");
        let details = status
            .get_details_bad_request()
            .expect("the field is named");
        assert_eq!(details.field_violations[0].field, field, "{shown}");
    }
    let unknown = system
        .ask(question("nobody", "問", base()))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    let never_made = system
        .ask(question(&"0".repeat(64), "問", base()))
        .await
        .unwrap_err();
    assert_eq!(never_made.code(), Code::NotFound, "{never_made}");
    assert_eq!(system.waiting() + system.active(), 0);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_can_be_asked_by_its_digest() {
    let system = Setup::new(BaseKind::Random).await.ready().await;
    let generation = adapters::publish_good(&system.store, &system.base_folder, 1).await;
    let base = system.ask(question("", "問", greedy(20))).await.unwrap();
    let named = system
        .ask(question(&generation, "問", greedy(20)))
        .await
        .unwrap();
    assert_eq!(named.started.generation, generation);
    assert_eq!(base.started.generation, "");
    assert_ne!(base.ids, named.ids, "the adapter changes the answer");
    assert_eq!(system.list().await.adapters.len(), 0, "no alias names it");
    system.stop().await.unwrap();
}
