//! A bad adapter is refused whole, with the reason. The alias keeps its earlier generation, and the
//! others are not affected.

use futures::StreamExt;
use togi_model::Config;
use togi_runtime::bus::reader::Start;
use togi_runtime::events::{Event, EventKind};
use togi_testing::{wait_until, within};
use tonic::Code;

use crate::adapters::{Draft, draft, files, promote, publish, publish_good};
use crate::harness::{BaseKind, Setup, System, greedy, question};

/// Changes the JSON header of a safetensors file and keeps its data.
fn edit_header(tensors: &mut Vec<u8>, edit: impl FnOnce(String) -> String) {
    let length = u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    let header = edit(String::from_utf8(tensors[8..8 + length].to_vec()).unwrap());
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header.as_bytes());
    changed.extend(&tensors[8 + length..]);
    *tensors = changed;
}

/// Name, part of the reason, and the change to a good adapter.
type Case = (&'static str, &'static str, fn(&mut Draft));

const CASES: &[Case] = &[
    ("renamed-tensor", "unknown tensors", |draft| {
        edit_header(&mut draft.files.tensors, |header| {
            header.replacen("lora_A", "lora_C", 1)
        });
    }),
    ("wrong-shape", "shape", |draft| {
        let wide = Config {
            hidden_size: 64,
            ..config(draft)
        };
        draft.files.tensors = files(&wide, 1).tensors;
    }),
    ("not-finite", "finite", |draft| {
        let at = draft.files.tensors.len() - 4;
        draft.files.tensors[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    }),
    ("header-too-large", "header", |draft| {
        edit_header(&mut draft.files.tensors, |header| {
            header + &" ".repeat(2 << 20)
        });
    }),
    ("wrong-base", "wrong base", |draft| {
        draft.identity.base = "ab".repeat(32)
    }),
    (
        "wrong-precision",
        "trained over int8, this replica holds f32",
        |draft| draft.identity.base_precision = "int8".into(),
    ),
    ("wrong-tokenizer", "wrong tokenizer", |draft| {
        draft.identity.tokenizer = "cd".repeat(32)
    }),
    ("corrupt", "sha-256", |draft| draft.is_corrupt = true),
    ("misnamed", "digest", |draft| draft.is_misnamed = true),
    ("no-json", "json", |draft| {
        draft.files.config = b"{".to_vec()
    }),
];

/// Adds a tensor to an adapter's file.
fn add_tensor(tensors: &mut Vec<u8>, name: &str) {
    let at = tensors.len();
    tensors.extend([0; 4]);
    edit_header(tensors, |header| {
        let at = at - 8 - header.len();
        let entry = format!(
            r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{at},{}]}},"#,
            at + 4
        );
        entry + &header[1..]
    });
}

/// The shape of the base that a draft was made for.
fn config(_draft: &Draft) -> Config {
    let folder = tempfile::tempdir().unwrap();
    crate::bases::write_random(folder.path())
}

async fn publish_bad(system: &System, case: &Case) -> Option<String> {
    let (name, _, spoil) = case;
    let mut bad = draft(&system.base_folder, 9);
    spoil(&mut bad);
    // A configuration that is not JSON has no digest.
    bad.is_misnamed |= *name == "no-json";
    Some(publish(&system.store, bad).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_adapter_is_refused_whole_and_affects_no_other() {
    let setup = Setup::new(BaseKind::Random).await.with_nats().await;
    let good = publish_good(&setup.store, &setup.base_folder(), 1).await;
    for (name, _, _) in CASES {
        promote(&setup.store, None, name, &good).await;
    }
    let system = setup.ready().await;
    let kinds = [EventKind::AdapterRejected];
    let mut events = system.bus.events(&kinds, Start::New).await.unwrap();
    let before = system
        .ask(question(CASES[0].0, "問", greedy(10)))
        .await
        .unwrap();
    for case in CASES {
        let (name, part, _) = case;
        let bad = publish_bad(&system, case).await.unwrap();
        promote(&system.store, Some(&system.bus), name, &bad).await;
        let Event::AdapterRejected(event) = within(name, events.next()).await.unwrap().event else {
            panic!("{name}: another event")
        };
        assert_eq!(
            (event.alias.as_str(), event.generation.as_str()),
            (*name, bad.as_str())
        );
        assert!(
            event.reason.to_lowercase().contains(part),
            "{name}: {}",
            event.reason
        );
        let list = system.list().await;
        let listed = list
            .rejected
            .iter()
            .find(|rejected| rejected.alias == *name)
            .unwrap();
        assert_eq!((&listed.generation, &listed.reason), (&bad, &event.reason));
        // The alias keeps its earlier generation.
        let after = system.ask(question(name, "問", greedy(10))).await.unwrap();
        assert_eq!(after.started.generation, good);
        assert_eq!((&after.text, &after.ids), (&before.text, &before.ids));
        // A request that names it is refused with the reason.
        let refused = system
            .ask(question(&bad, "問", greedy(1)))
            .await
            .unwrap_err();
        assert_eq!(
            refused.code(),
            Code::FailedPrecondition,
            "{name}: {refused}"
        );
    }
    assert_eq!(system.list().await.rejected.len(), CASES.len());
    // A good adapter under the same alias ends the refusal, and another alias is loaded.
    let next = publish_good(&system.store, &system.base_folder, 2).await;
    promote(&system.store, Some(&system.bus), CASES[0].0, &next).await;
    promote(&system.store, Some(&system.bus), "fresh", &next).await;
    system.until_serving(CASES[0].0, &next).await;
    system.until_serving("fresh", &next).await;
    assert_eq!(system.list().await.rejected.len(), CASES.len() - 1);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_adapter_tensors_are_refused() {
    let setup = Setup::new(BaseKind::Random).await;
    // Tensors of an unknown module, and of a layer that the base does not have.
    let unknown = [
        "base_model.model.gpt_neox.embed_in.lora_A.weight",
        "base_model.model.gpt_neox.layers.2.attention.dense.lora_A.weight",
    ];
    for (alias, name) in ["first", "second"].into_iter().zip(unknown) {
        let mut bad = draft(&setup.base_folder(), 1);
        add_tensor(&mut bad.files.tensors, name);
        let bad = publish(&setup.store, bad).await;
        promote(&setup.store, None, alias, &bad).await;
    }
    let system = setup.ready().await;
    for (alias, name) in ["first", "second"].into_iter().zip(unknown) {
        assert_eq!(system.serving(alias), None);
        let refused = system
            .ask(question(alias, "問", greedy(1)))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(name), "{refused}");
    }
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_adapter_at_the_start_blocks_no_other() {
    let setup = Setup::new(BaseKind::Random).await;
    let mut bad = draft(&setup.base_folder(), 1);
    bad.is_corrupt = true;
    let bad = publish(&setup.store, bad).await;
    let good = publish_good(&setup.store, &setup.base_folder(), 2).await;
    promote(&setup.store, None, "a-bad", &bad).await;
    promote(&setup.store, None, "b-good", &good).await;
    // Names a generation that was never published.
    promote(&setup.store, None, "c-empty", &"0".repeat(64)).await;
    let system = setup.ready().await;
    assert_eq!(system.serving("b-good").as_deref(), Some(good.as_str()));
    wait_until("both are refused", async || {
        system
            .replica
            .served()
            .is_some_and(|served| served.refused.len() == 2)
    })
    .await;
    let refused = system
        .ask(question("a-bad", "問", greedy(1)))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    system.stop().await.unwrap();
}
