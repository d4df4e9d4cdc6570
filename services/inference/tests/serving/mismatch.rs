//! Adapters over another precision of their base than in training: refused with both names, or
//! served, measured and reported.

use futures::StreamExt;
use togi_model::{Base, Engine, Precision};
use togi_proto::events::v1::{AdapterLoaded, BaseMismatch};
use togi_runtime::bus::reader::{EventStream, Start};
use togi_runtime::events::{Event, EventKind};
use togi_runtime::registry::model_card;
use togi_testing::within;
use togi_tokens::{Tokenizer, prompt};
use tonic::Code;

use crate::adapters::{draft, promote, promote_over_any_base, publish};
use crate::harness::{BaseKind, Setup, System, greedy, question};

/// Publishes an adapter that was trained over a precision, with a card of these samples.
async fn publish_trained_over(
    system: &Setup,
    precision: &str,
    seed: u64,
    samples: &[String],
) -> String {
    let mut made = draft(&system.base_folder(), seed);
    made.identity.base_precision = precision.into();
    made.card = Some(format!(
        "---\n{}---\n# A card\n",
        model_card::widget(samples)
    ));
    publish(&system.store, made).await
}

fn samples() -> Vec<String> {
    ["問", "問12"]
        .map(|text| prompt::generation(text, ""))
        .into()
}

async fn next_loaded(events: &mut EventStream) -> AdapterLoaded {
    match within("an event", events.next()).await.unwrap().event {
        Event::AdapterLoaded(event) => event,
        other => panic!("{other:?}"),
    }
}

/// Largest and mean absolute difference of the logits that follow the samples, computed apart from
/// the service.
fn expected(system: &System, seed: u64, precisions: [Precision; 2]) -> (f64, f64) {
    let files = draft(&system.base_folder, seed).files;
    let logits = |precision| {
        let base = Base::load_as(&system.base_folder, precision).unwrap();
        let tokenizer = Tokenizer::from_bytes(base.tokenizer().unwrap()).unwrap();
        let engine = Engine::new(base.into()).unwrap();
        let lora = togi_model::adapter::from_files(&files.config, &files.tensors, engine.config());
        let adapter = engine.adapter(&lora.unwrap()).unwrap();
        let after = |sample: &String| {
            let ids = tokenizer.encode(sample);
            engine
                .decode(&mut engine.cache(), &ids, Some(&adapter))
                .unwrap()
        };
        samples().iter().flat_map(after).collect::<Vec<f32>>()
    };
    let [ours, theirs] = precisions.map(logits);
    let apart = ours
        .iter()
        .zip(&theirs)
        .map(|(a, b)| f64::from((a - b).abs()));
    let largest = apart.clone().fold(0.0, f64::max);
    (largest, apart.sum::<f64>() / ours.len() as f64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_over_another_precision_is_refused_with_both_names() {
    let mut setup = Setup::new(BaseKind::Random).await;
    setup.config.bases.get_mut("test").unwrap().precision = Some("nf4".into());
    let same = publish_trained_over(&setup, "nf4", 1, &[]).await;
    let other = publish_trained_over(&setup, "f32", 2, &[]).await;
    promote(&setup.store, None, "same", &same).await;
    promote(&setup.store, None, "other", &other).await;
    let system = setup.ready().await;
    let answer = system.ask(question("same", "問", greedy(5))).await.unwrap();
    assert_eq!(answer.started.generation, same);
    let refused = system
        .ask(question("other", "問", greedy(5)))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let says = "trained over f32, this replica holds nf4";
    assert!(refused.message().contains(says), "{refused}");
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_mismatch_is_served_measured_and_reported() {
    let setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let generation = publish_trained_over(&setup, "nf4", 1, &samples()).await;
    let native = publish_trained_over(&setup, "f32", 2, &samples()).await;
    let system = setup.ready().await;
    let (store, bus) = (&system.store, Some(&system.bus));
    let kinds = [EventKind::AdapterLoaded];
    let mut events = system.bus.events(&kinds, Start::New).await.unwrap();
    promote_over_any_base(store, bus, "main", &generation).await;
    let said = next_loaded(&mut events).await;
    assert_eq!(
        (said.alias.as_str(), &said.generation),
        ("main", &generation)
    );
    let mismatch = said.base_mismatch.expect("a mismatch");
    let (largest, mean) = expected(&system, 1, [Precision::F32, Precision::Nf4]);
    assert!(largest > mean && mean > 0.0);
    let expected = BaseMismatch {
        trained_precision: "nf4".into(),
        served_precision: "f32".into(),
        max_abs_logit_difference: mismatch.max_abs_logit_difference,
        mean_abs_logit_difference: mismatch.mean_abs_logit_difference,
        samples: 2,
        not_measured: String::new(),
    };
    assert_eq!(mismatch, expected);
    for (said, computed) in [
        (mismatch.max_abs_logit_difference, largest),
        (mismatch.mean_abs_logit_difference, mean),
    ] {
        let said = said.unwrap();
        assert!(
            (said - computed).abs() <= 1e-6 * computed,
            "{said} for {computed}"
        );
    }

    // An adapter that was trained over the same precision has no mismatch to report.
    promote(store, bus, "main", &native).await;
    let said = next_loaded(&mut events).await;
    assert_eq!((said.generation, said.base_mismatch), (native, None));
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_allows_a_mismatch_for_its_alias_alone() {
    let setup = Setup::new(BaseKind::Random).await;
    let generation = publish_trained_over(&setup, "int8", 1, &samples()).await;
    promote_over_any_base(&setup.store, None, "allowed", &generation).await;
    let system = setup.ready().await;
    system.until_serving("allowed", &generation).await;
    // It is in memory, and still refused for an alias that does not allow it.
    promote(&system.store, None, "strict", &generation).await;
    let refused = within("the refusal", async {
        loop {
            let answer = system.ask(question("strict", "問", greedy(1))).await;
            match answer {
                Err(status) if status.code() == Code::FailedPrecondition => return status,
                Err(_) => tokio::task::yield_now().await,
                Ok(_) => panic!("it is served"),
            }
        }
    })
    .await;
    assert!(
        refused.message().contains("allow_base_mismatch"),
        "{refused}"
    );
    // A request by digest is answered as long as a promotion allows the mismatch.
    let answer = system.ask(question(&generation, "問", greedy(1))).await;
    assert_eq!(answer.unwrap().started.generation, generation);
    let unpromoted = {
        let mut made = draft(&system.base_folder, 2);
        made.identity.base_precision = "int8".into();
        publish(&system.store, made).await
    };
    let refused = system.ask(question(&unpromoted, "問", greedy(1))).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mismatch_that_cannot_be_measured_is_served_with_the_reason() {
    let setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let without_samples = publish_trained_over(&setup, "nf4", 1, &[]).await;
    let unknown = publish_trained_over(&setup, "fp9", 2, &samples()).await;
    let too_long = publish_trained_over(&setup, "nf4", 3, &["問".repeat(500)]).await;
    let system = setup.ready().await;
    let kinds = [EventKind::AdapterLoaded];
    let mut events = system.bus.events(&kinds, Start::New).await.unwrap();
    for (generation, reason) in [
        (without_samples, "no sample prompts"),
        (unknown, "fp9"),
        (too_long, "the model's longest"),
    ] {
        promote_over_any_base(&system.store, Some(&system.bus), "main", &generation).await;
        let said = next_loaded(&mut events).await;
        let mismatch = said.base_mismatch.expect("a mismatch");
        assert!(mismatch.not_measured.contains(reason), "{mismatch:?}");
        assert_eq!(
            (mismatch.samples, mismatch.max_abs_logit_difference),
            (0, None)
        );
        assert_eq!(system.serving("main").as_deref(), Some(generation.as_str()));
    }
    system.stop().await.unwrap();
}
