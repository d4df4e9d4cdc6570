//! Promotion, rollback and following, with NATS and without.

use std::time::Duration;

use futures::StreamExt as _;
use togi_common::{AliasName, Digest, Generation, canonical};
use togi_runtime::registry::aliases::{Alias, Aliases};
use togi_runtime::registry::revisions::BaseMismatch::{Allowed, Refused};
use togi_runtime::{Class, Context, layout};
use togi_testing::Rig;

fn generation(n: u8) -> Generation {
    Digest::from([n; 32]).into()
}

fn alias(name: &str) -> AliasName {
    name.parse().unwrap()
}

async fn publish(context: &Context, n: u8) -> Generation {
    let generation = generation(n);
    context
        .store
        .put_new(&layout::adapter_manifest(generation), "{}")
        .await
        .unwrap();
    generation
}

#[tokio::test(flavor = "multi_thread")]
async fn promotions_and_rollbacks_are_revisions() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let aliases = Aliases::new(&context.bus, &context.store);
    let (one, two) = (publish(&context, 1).await, publish(&context, 2).await);
    assert!(aliases.current(&alias("main")).await.unwrap().is_none());
    assert_eq!(
        aliases.rollback(&alias("main")).await.unwrap_err().class(),
        Class::NotFound
    );
    assert_eq!(
        aliases
            .promote(&alias("main"), one, Refused)
            .await
            .unwrap()
            .revision,
        1
    );
    assert_eq!(
        aliases
            .promote(&alias("main"), one, Refused)
            .await
            .unwrap()
            .revision,
        1
    );
    assert_eq!(
        aliases.rollback(&alias("main")).await.unwrap_err().class(),
        Class::FailedPrecondition
    );
    assert_eq!(
        aliases
            .promote(&alias("main"), two, Refused)
            .await
            .unwrap()
            .revision,
        2
    );
    let back = aliases.rollback(&alias("main")).await.unwrap();
    assert_eq!((back.revision, back.generation()), (3, one));
    assert_eq!(aliases.list().await.unwrap(), [back]);
    let mirrored = context
        .bus
        .aliases()
        .get("main")
        .await
        .unwrap()
        .unwrap()
        .value
        .unwrap();
    let mirrored: serde_json::Value = serde_json::from_slice(&mirrored).unwrap();
    assert_eq!(
        (
            mirrored["generation"].as_str(),
            mirrored["revision"].as_u64()
        ),
        (Some(one.to_string().as_str()), Some(3))
    );
    let unknown = generation(9);
    assert_eq!(
        aliases
            .promote(&alias("main"), unknown, Refused)
            .await
            .unwrap_err()
            .class(),
        Class::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_base_mismatch_is_said_by_the_promotion_and_its_rollback() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let aliases = Aliases::new(&context.bus, &context.store);
    let (one, two) = (publish(&context, 1).await, publish(&context, 2).await);
    aliases.promote(&alias("main"), one, Refused).await.unwrap();
    // The same generation, but something else is said of it.
    let allowed = aliases.promote(&alias("main"), one, Allowed).await.unwrap();
    let again = aliases.promote(&alias("main"), one, Allowed).await.unwrap();
    assert_eq!((allowed.revision, &again), (2, &allowed));
    aliases.promote(&alias("main"), two, Refused).await.unwrap();
    let said = async |revision: u64| {
        let path = layout::alias_revision(&alias("main"), revision);
        let said: serde_json::Value = context.store.get_json(&path).await.unwrap();
        (
            said["generation"].clone(),
            said["allow_base_mismatch"].clone(),
        )
    };
    aliases.rollback(&alias("main")).await.unwrap();
    aliases.rollback(&alias("main")).await.unwrap();
    let (one, two) = (serde_json::json!(one), serde_json::json!(two));
    let nothing = serde_json::Value::Null;
    let mut history = Vec::new();
    for revision in 1..=5 {
        history.push(said(revision).await);
    }
    let expected = [
        (one.clone(), nothing.clone()),
        (one.clone(), true.into()),
        (two, nothing.clone()),
        (one.clone(), true.into()),
        (one, nothing),
    ];
    assert_eq!(history, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compared_is_promoted_over_nothing_else() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let aliases = Aliases::new(&context.bus, &context.store);
    let mut generations = Vec::new();
    for n in 1..=3 {
        generations.push(publish(&context, n).await);
    }
    let [one, two, three] = generations.try_into().unwrap();
    let over = async |over: Option<Generation>, generation: Generation| {
        let main = alias("main");
        let named = aliases.promote_over(over, &main, generation).await.unwrap();
        (named.generation(), named.revision)
    };
    // Something that was measured beside another generation may stand where nothing does.
    assert_eq!(over(Some(two), one).await, (one, 1));
    assert_eq!(over(None, two).await, (one, 1));
    assert_eq!(over(Some(three), two).await, (one, 1));
    assert_eq!(over(Some(one), two).await, (two, 2));
    // Repeated, as after a lost answer.
    assert_eq!(over(Some(one), two).await, (two, 2));
    // Of those that were measured beside the same, one is promoted.
    let racers = [one, three].map(|generation| over(Some(two), generation));
    let named = futures::future::join_all(racers).await;
    assert_eq!(named[0], named[1]);
    assert_eq!(named[0].1, 3);
    let unknown = generation(0);
    let name = alias("main");
    let refused = aliases.promote_over(Some(named[0].0), &name, unknown);
    assert_eq!(refused.await.unwrap_err().class(), Class::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_promotions_all_get_a_revision_and_one_is_the_last() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let aliases = Aliases::new(&context.bus, &context.store);
    let mut generations = Vec::new();
    for n in 1..=6 {
        generations.push(publish(&context, n).await);
    }
    let main = alias("main");
    let racers = generations
        .iter()
        .map(|generation| aliases.promote(&main, *generation, Refused));
    let promoted = futures::future::join_all(racers).await;
    let mut revisions: Vec<u64> = promoted
        .into_iter()
        .map(|alias| alias.unwrap().revision)
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [1, 2, 3, 4, 5, 6]);
    let history = aliases.history(&alias("main")).await.unwrap();
    let mut named: Vec<Generation> = history.iter().map(|alias| alias.generation()).collect();
    named.sort_unstable();
    assert_eq!(named, generations);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_hears_at_once_and_a_broken_alias_blocks_no_other() {
    let mut rig = Rig::start();
    let (context, other) = (
        rig.context("one").await.unwrap(),
        rig.context("two").await.unwrap(),
    );
    let (aliases, follower) = (
        Aliases::new(&context.bus, &context.store),
        Aliases::new(&other.bus, &other.store),
    );
    let one = publish(&context, 1).await;
    context
        .store
        .put_new(&layout::alias_revision(&alias("broken"), 1), "not json")
        .await
        .unwrap();
    // The period is longer than the test's timeout, so only the event can report the change.
    let mut changes = follower.follow(Duration::from_secs(600));
    assert!(changes.next().await.unwrap().is_empty());
    let waiting = tokio::spawn(async move { (changes.next().await.unwrap(), changes) });
    aliases.promote(&alias("main"), one, Refused).await.unwrap();
    let patience = Duration::from_secs(20);
    let (seen, changes) = tokio::time::timeout(patience, waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((seen.len(), seen[0].generation()), (1, one));
    drop(changes);
    // Without NATS only the list reports the change.
    rig.nats.kill();
    let mut alone = follower.follow(Duration::from_millis(50));
    let seen = tokio::time::timeout(patience, alone.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(seen[0].generation(), one);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_reads_its_alias_alone_and_events_do_not_put_off_the_next_list() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let aliases = Aliases::new(&context.bus, &context.store);
    let (one, two) = (publish(&context, 1).await, publish(&context, 2).await);
    for name in ["a", "b"] {
        aliases.promote(&alias(name), one, Refused).await.unwrap();
    }
    let named = |list: &[Alias]| -> Vec<(u64, Generation)> {
        let alias = |alias: &Alias| (alias.revision, alias.generation());
        list.iter().map(alias).collect()
    };
    let mut changes = aliases.follow(Duration::from_secs(600));
    let seen = changes.next().await.unwrap();
    assert_eq!(named(&seen), [(1, one), (1, one)]);
    // A revision without an event is found by listing alone.
    let silent = alias("a");
    let revision = canonical::json(&seen[0].content).unwrap();
    let path = layout::alias_revision(&silent, 2);
    context.store.put_new(&path, revision).await.unwrap();
    aliases.promote(&alias("b"), two, Refused).await.unwrap();
    let seen = changes.next().await.unwrap();
    assert_eq!(named(&seen), [(1, one), (2, two)]);
    // One that is back at an earlier revision, or new, is read as well.
    aliases.rollback(&alias("b")).await.unwrap();
    let seen = changes.next().await.unwrap();
    assert_eq!(named(&seen), [(1, one), (3, one)]);
    aliases.promote(&alias("c"), two, Refused).await.unwrap();
    let seen = changes.next().await.unwrap();
    assert_eq!(named(&seen), [(1, one), (3, one), (1, two)]);
    // With a short period the silent one is found among the events.
    let mut changes = aliases.follow(Duration::from_millis(50));
    let seen = changes.next().await.unwrap();
    assert_eq!(named(&seen)[0], (2, one));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_revision_takes_nothing_away_and_is_promoted_over() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let aliases = Aliases::new(&context.bus, &context.store);
    let (one, two) = (publish(&context, 1).await, publish(&context, 2).await);
    aliases.promote(&alias("main"), one, Refused).await.unwrap();
    let mut changes = aliases.follow(Duration::from_millis(50));
    let seen = changes.next().await.unwrap();
    assert_eq!(seen[0].generation(), one);
    context
        .store
        .put_new(&layout::alias_revision(&alias("main"), 2), "not json")
        .await
        .unwrap();
    aliases
        .promote(&alias("other"), two, Refused)
        .await
        .unwrap();
    let seen = changes.next().await.unwrap();
    let named: Vec<_> = seen
        .iter()
        .map(|alias| (alias.name().as_str(), alias.generation()))
        .collect();
    assert_eq!(named, [("main", one), ("other", two)]);
    let mended = aliases.promote(&alias("main"), two, Refused).await.unwrap();
    assert_eq!(mended.revision, 3);
    let seen = changes.next().await.unwrap();
    assert_eq!(seen[0], mended);
}
