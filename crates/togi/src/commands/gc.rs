//! `togi gc`: deletes what nothing reaches.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::path::Path;
use serde::Serialize;
use togi_runtime::Store;

use crate::error::Result;
use crate::gc;
use crate::gc::{Facts, Object, Plan};
use crate::progress::{Unit, mebibytes};
use crate::session::Session;
use crate::table::Table;

const EXAMPLES: &str = "\
Examples:
  togi gc --dry-run                       list what would be deleted
  togi gc                                 delete it
  togi gc --store s3://bucket/togi        of a store that no `togi up` on this machine holds";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Gc {
    /// Only lists what would be deleted
    #[arg(long, short = 'n')]
    pub dry_run: bool,
}

/// A line of the result as JSON.
#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    bytes: u64,
    written: String,
    deleted: bool,
}

impl Gc {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = &session.output;
        let store = session.store().await?;
        let plan = decide(session, &store).await?;
        let bytes: u64 = plan.garbage.iter().map(|object| object.bytes).sum();
        if !self.dry_run {
            delete(session, &store, &plan.garbage).await?;
        }
        print(session, &plan, !self.dry_run)?;
        let what = if self.dry_run {
            "would be deleted"
        } else {
            "deleted"
        };
        output.say(format_args!(
            "{} objects, {} {what}",
            plan.garbage.len(),
            mebibytes(bytes)
        ));
        if plan.young > 0 {
            output.say(format_args!(
                "{} more are unreached but younger than a day",
                plan.young
            ));
        }
        if plan.unfinished_jobs > 0 {
            let jobs = plan.unfinished_jobs;
            output.say(format_args!(
                "leftovers of data sets and adapters are kept: {jobs} unfinished jobs may use them"
            ));
        }
        Ok(())
    }
}

/// Decides twice and deletes only what is garbage both times, because a manifest may be committed
/// during the first look.
async fn decide(session: &Session, store: &Store) -> Result<Plan> {
    let now = Timestamp::now();
    let first = gc::plan(&look(session, store).await?, now)?;
    if first.garbage.is_empty() {
        return Ok(first);
    }
    let mut second = gc::plan(&look(session, store).await?, now)?;
    let first: BTreeSet<String> = first.garbage.into_iter().map(|object| object.key).collect();
    second.garbage.retain(|object| first.contains(&object.key));
    Ok(second)
}

/// Lists the store and reads what the decision needs.
async fn look(session: &Session, store: &Store) -> Result<Facts> {
    let mut progress = session.output.progress("looking");
    let mut facts = Facts::default();
    let mut listing = store.inner().list(None);
    while let Some(meta) = listing
        .try_next()
        .await
        .map_err(togi_runtime::Error::from)?
    {
        let written =
            Timestamp::from_second(meta.last_modified.timestamp()).unwrap_or(Timestamp::MAX);
        facts.objects.push(Object {
            key: meta.location.to_string(),
            bytes: meta.size,
            written,
        });
        progress.set(facts.objects.len() as u64, "objects");
    }
    drop(listing);
    let keys: Vec<String> = facts
        .objects
        .iter()
        .map(|object| object.key.clone())
        .filter(|key| gc::is_read(key))
        .collect();
    progress.set_length(keys.len() as u64, Unit::Count);
    let mut contents = BTreeMap::new();
    for (read, key) in keys.into_iter().enumerate() {
        progress.set(read as u64, "manifests");
        contents.insert(key.clone(), store.get(&Path::from(key)).await?.to_vec());
    }
    facts.contents = contents;
    Ok(facts)
}

async fn delete(session: &Session, store: &Store, garbage: &[Object]) -> Result<()> {
    let mut progress = session.output.progress("deleting");
    progress.set_length(garbage.len() as u64, Unit::Count);
    for (deleted, object) in garbage.iter().enumerate() {
        progress.set(deleted as u64, &object.key);
        store.delete(&Path::from(object.key.clone())).await?;
    }
    Ok(())
}

fn print(session: &Session, plan: &Plan, deleted: bool) -> Result<()> {
    let output = &session.output;
    if output.is_json() {
        return plan.garbage.iter().try_for_each(|object| {
            let Object {
                key,
                bytes,
                written,
            } = object;
            output.json(&Line {
                key,
                bytes: *bytes,
                written: written.to_string(),
                deleted,
            })
        });
    }
    let mut table = Table::new(&["OBJECT", "SIZE", "WRITTEN"]);
    for object in &plan.garbage {
        table.row([
            object.key.clone(),
            mebibytes(object.bytes),
            object.written.strftime("%Y-%m-%d %H:%M").to_string(),
        ]);
    }
    output.lines(table.lines())
}
