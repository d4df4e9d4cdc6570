//! A pipeline: a file that describes a preparation, a training and a gate, and its stages in order.

pub mod command;
pub mod junit;
pub mod report;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use togi_proto::events::v1::AdapterEvaluated;
use togi_proto::job::v1::Job;
use togi_proto::trainer::v1::watch_job_response::Update;
use togi_proto::trainer::v1::{
    CreateJobRequest, Gate, GetJobRequest, ListAliasesRequest, Recipe, WatchJobResponse,
};

use self::report::{Report, Stage};
use crate::client::present;
use crate::commands::prepare::Prepare;
use crate::commands::train::remote;
use crate::commands::{job_lines, watch};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::{embedded, recipe, upload};

/// The contents of a pipeline's file, with paths relative to the working directory.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Its name: the file's, without the extension.
    pub name: String,
    folder: PathBuf,
    prepare: Prepare,
    base: String,
    recipe: Recipe,
    alias: String,
    gate: Gate,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    prepare: Prepare,
    train: toml::Table,
    #[serde(default)]
    gate: toml::Table,
}

/// `[train]` without its recipe.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    #[serde(default)]
    base: Option<String>,
    alias: String,
}

impl Pipeline {
    /// Reads a pipeline's file.
    ///
    /// # Errors
    /// [`Error::File`] for a missing file, [`Error::Configuration`] for an invalid one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = recipe::read(path)?;
        // The whole file is parsed first, so that an error has its line.
        let wrong = |error| Error::toml(path, &text, &error);
        let File {
            mut prepare,
            train: mut table,
            gate,
        } = toml::from_str(&text).map_err(wrong)?;
        let named = recipe::take_recipe(path, &mut table)?;
        let recipe = match (named, table.remove("recipe")) {
            (Some(named), _) => named,
            (None, Some(toml::Value::Table(recipe))) => recipe::message(path, recipe)?,
            (None, _) => Recipe::default(),
        };
        let train: Train = table.try_into().map_err(|error: toml::de::Error| {
            let problem = error.message().replace('\n', ", ");
            Error::Configuration(format!("{}: [train] {problem}", path.display()))
        })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let sources = [
            prepare.file.is_some(),
            prepare.source.is_some(),
            prepare.hub.is_some(),
        ];
        if sources.into_iter().filter(|named| *named).count() != 1 {
            let problem = "[prepare] needs one of file, source and hub";
            return Err(Error::Configuration(format!(
                "{}: {problem}",
                path.display()
            )));
        }
        for file in [&mut prepare.file, &mut prepare.tokenizer] {
            *file = file.take().map(|file| folder.join(file));
        }
        let base = train.base.unwrap_or_else(|| embedded::BASE.to_owned());
        if prepare.base.is_none() && prepare.tokenizer.is_none() {
            prepare.base = Some(base.clone());
        }
        let name = path.file_stem().unwrap_or_default();
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            folder,
            prepare,
            base,
            recipe,
            alias: train.alias,
            gate: recipe::message(path, gate)?,
        })
    }

    /// Prepares, trains, waits for the gate, and reads the alias; `report` records every stage.
    ///
    /// # Errors
    /// A stage's failure, or the gate's refusal.
    pub async fn run(&self, session: &Session, report: &mut Report) -> Result<()> {
        let dataset = report
            .stage(Stage::Prepare, self.prepare.make(session))
            .await?;
        report.dataset = Some(dataset.clone());
        let job = self.queue(session, &dataset.digest);
        let job = report.stage(Stage::Train, job).await?;
        report.job = Some(job.clone());
        let (job, evaluation) = self.follow(session, job, report).await?;
        report.job = Some(job.clone());
        report.evaluation = evaluation;
        report.judge()?;
        let published = self.published(session, &job);
        report.alias = report.stage(Stage::Publish, published).await?;
        Ok(())
    }

    async fn queue(&self, session: &Session, dataset: &str) -> Result<Job> {
        let mut gate = self.gate.clone();
        upload::questions(&session.clients, &session.output, &self.folder, &mut gate).await?;
        let request = CreateJobRequest {
            base: self.base.clone(),
            dataset: dataset.to_owned(),
            recipe: Some(self.recipe.clone()),
            alias: self.alias.clone(),
            gate: Some(gate),
            ..CreateJobRequest::default()
        };
        let answer = remote::create(session, request).await?;
        present(answer.job, "job")
    }

    /// Follows the job to its end. The training ends with the last step; the evaluation follows it.
    async fn follow(
        &self,
        session: &Session,
        job: Job,
        report: &mut Report,
    ) -> Result<(Job, Option<AdapterEvaluated>)> {
        let seen = |update: &WatchJobResponse| {
            if let Some(Update::Step(step)) = &update.update
                && step.step == step.steps
            {
                report.trained();
            }
            Ok(())
        };
        let (job, steps) = watch::training(session, job, 1, seen).await?;
        if let Some(ended) = job_lines::ended(&steps, &job) {
            session.output.say(ended);
        }
        let asked = GetJobRequest {
            job: job.id.clone(),
        };
        let mut trainer = session.clients.trainer().await?;
        let evaluation = trainer.get_job(asked).await?.into_inner().evaluation;
        Ok((job, evaluation))
    }

    /// Returns the alias, if it names the job's adapter: a recipe may leave the promotion to a
    /// person.
    async fn published(
        &self,
        session: &Session,
        job: &Job,
    ) -> Result<Option<togi_proto::trainer::v1::Alias>> {
        let mut adapters = session.clients.adapters().await?;
        let listed = adapters.list_aliases(ListAliasesRequest {}).await?;
        let aliases = listed.into_inner().aliases;
        Ok(aliases
            .into_iter()
            .find(|alias| alias.name == self.alias && alias.generation == job.result))
    }
}
