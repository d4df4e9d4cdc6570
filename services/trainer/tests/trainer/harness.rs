//! A system under test: one rig, and processes on it that start, stop and die like real ones.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tempfile::TempDir;
use togi_model::DeviceName;
use togi_proto::dataprep::v1::data_prep_service_client::DataPrepServiceClient;
use togi_proto::dataprep::v1::{
    GetDatasetRequest, GetPreparationRequest, PrepareRequest, PrepareSettings, RecordSource,
    TokenizerSource, UploadRequest, record_source, tokenizer_source,
};
use togi_proto::job::v1::{Job, JobState};
use togi_proto::trainer::v1::adapter_service_client::AdapterServiceClient;
use togi_proto::trainer::v1::policy_service_client::PolicyServiceClient;
use togi_proto::trainer::v1::trainer_service_client::TrainerServiceClient;
use togi_proto::trainer::v1::watch_job_response::Update;
use togi_proto::trainer::v1::{CreateJobRequest, GetJobRequest, Step, WatchJobRequest};
use togi_runtime::config::{BaseConfig, NatsConfig};
use togi_runtime::jobs::State;
use togi_runtime::rpc::client::Client;
use togi_runtime::rpc::server::Services;
use togi_runtime::{Bus, Context, Readiness, Stopper, Store, Tasks, rpc};
use togi_testing::{Rig, wait_until};
use togi_trainer::Role;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::inputs::{BASE, TOKENIZER, config, lines, write_base};

/// The parts that all processes share.
pub(crate) struct System {
    pub(crate) rig: Rig,
    bases: TempDir,
}

/// The settings of a process that tests vary. By default it runs data-prep and both roles of the
/// trainer.
pub(crate) struct Shape {
    pub(crate) roles: Vec<Role>,
    /// The device that workers compute on.
    pub(crate) device: DeviceName,
    /// Serve data-prep in this process at this port (0: any).
    pub(crate) data_prep_port: Option<u16>,
    /// Read rows from this endpoint; empty: from this process.
    pub(crate) data_prep: String,
    pub(crate) nats: NatsConfig,
    pub(crate) memory_bytes: u64,
    pub(crate) prefetch_bytes: u32,
}

/// A running process.
pub(crate) struct Process {
    pub(crate) endpoint: String,
    pub(crate) context: Context,
    life: JoinHandle<togi_runtime::Result<()>>,
}

impl System {
    pub(crate) fn start() -> System {
        let rig = Rig::start();
        let bases = tempfile::tempdir().unwrap();
        write_base(&bases.path().join(BASE), &config(), TOKENIZER);
        System { rig, bases }
    }

    pub(crate) fn base_folder(&self, name: &str) -> std::path::PathBuf {
        self.bases.path().join(name)
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape {
            roles: vec![Role::Api, Role::Worker],
            device: DeviceName::Cpu,
            data_prep_port: Some(0),
            data_prep: String::new(),
            nats: self.rig.nats.config(),
            memory_bytes: 0,
            prefetch_bytes: 1 << 20,
        }
    }

    /// Starts a process with all roles.
    pub(crate) async fn process(&self, instance: &str) -> Process {
        self.process_with(instance, self.shape()).await
    }

    /// Starts a process with one role.
    pub(crate) async fn process_as(&self, instance: &str, role: Role) -> Process {
        let roles = vec![role];
        let shape = Shape {
            roles,
            ..self.shape()
        };
        self.process_with(instance, shape).await
    }

    pub(crate) async fn process_with(&self, instance: &str, shape: Shape) -> Process {
        self.try_process(instance, shape).await.unwrap()
    }

    /// Starts a process, or returns the error that prevents it.
    pub(crate) async fn try_process(
        &self,
        instance: &str,
        shape: Shape,
    ) -> togi_runtime::Result<Process> {
        let port = shape.data_prep_port.unwrap_or(0);
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let context = self.context(instance, &shape.nats).await;
        let (mut services, mut tasks) = (Services::new(), Tasks::new(&context.stopper));
        if shape.data_prep_port.is_some() {
            let mut config = togi_data_prep::Config::load(&[]).unwrap();
            config.bases = self.bases();
            config.prepare.scratch = self.bases.path().to_owned();
            togi_data_prep::start(config, &context, &mut services, &mut tasks)
                .await
                .unwrap();
        }
        let mut config = togi_trainer::Config::load(&[]).unwrap();
        config.bases = self.bases();
        config.roles = shape.roles.into_iter().collect();
        config.device = shape.device;
        config.data_prep = if shape.data_prep.is_empty() {
            endpoint.clone()
        } else {
            shape.data_prep
        };
        config.training.memory_bytes = shape.memory_bytes;
        config.training.prefetch_bytes = shape.prefetch_bytes;
        config.training.log_flush_seconds = 0.02;
        config.api.watch_poll_seconds = 0.02;
        config.api.reconcile_seconds = 0.2;
        if config.roles.is_empty() {
            config.roles = [Role::Api].into();
        }
        togi_trainer::start(config, &context, &mut services, &mut tasks).await?;
        let served = context.clone();
        let life = tokio::spawn(async move {
            let (served, joined) = tokio::join!(
                rpc::server::serve(listener, services, &served.readiness, &served.stopper),
                tasks.join()
            );
            served.and(joined)
        });
        Ok(Process {
            endpoint,
            context,
            life,
        })
    }

    async fn context(&self, instance: &str, nats: &NatsConfig) -> Context {
        let stopper = Stopper::new();
        let store = Store::open(&self.rig.store_config()).await.unwrap();
        let bus = Bus::connect(nats, instance, &stopper).await.unwrap();
        Context {
            stopper,
            bus,
            store,
            readiness: Readiness::new(),
            instance: instance.to_owned(),
        }
    }

    fn bases(&self) -> BTreeMap<String, BaseConfig> {
        let folders = std::fs::read_dir(self.bases.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let folders = folders.filter(|path| path.is_dir());
        let named = folders.map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (
                name,
                BaseConfig {
                    url: format!("file://{}", path.display()),
                    options: BTreeMap::new(),
                    precision: None,
                },
            )
        });
        named.collect()
    }
}

impl Process {
    /// Stops the process as SIGTERM does.
    pub(crate) async fn stop(self) {
        self.context.stopper.stop();
        self.life.await.unwrap().unwrap();
    }

    /// Ends the process as SIGKILL does: nothing is handed back or announced.
    pub(crate) async fn kill(self) {
        self.life.abort();
        let _ = self.life.await;
    }

    pub(crate) fn channel(&self) -> Client {
        rpc::client::channel(&self.endpoint).unwrap()
    }

    pub(crate) fn trainer(&self) -> TrainerServiceClient<Client> {
        TrainerServiceClient::new(self.channel())
    }

    pub(crate) fn adapters(&self) -> AdapterServiceClient<Client> {
        AdapterServiceClient::new(self.channel())
    }

    pub(crate) fn policies(&self) -> PolicyServiceClient<Client> {
        PolicyServiceClient::new(self.channel())
    }

    pub(crate) fn store(&self) -> &Store {
        &self.context.store
    }

    /// Prepares `records` records as the next revision of a data set and returns its digest.
    pub(crate) async fn prepare(&self, name: &str, records: usize) -> String {
        self.prepare_with(name, &lines(records), BASE, settings(48))
            .await
    }

    /// Like [`Self::prepare`], with a fifth of the records held out for a gate.
    pub(crate) async fn prepare_held_out(&self, name: &str, records: usize) -> String {
        self.prepare_split(name, &lines(records)).await
    }

    pub(crate) async fn prepare_split(&self, name: &str, lines: &str) -> String {
        let settings = PrepareSettings {
            validation_share: Some(0.2),
            ..settings(48)
        };
        self.prepare_with(name, lines, BASE, settings).await
    }

    /// Uploads a file to the store.
    pub(crate) async fn upload(&self, text: &str) -> String {
        let mut client = DataPrepServiceClient::new(self.channel());
        let chunk = text.as_bytes().to_vec();
        let upload = client.upload(stream::iter([UploadRequest { chunk }]));
        upload.await.unwrap().into_inner().upload
    }

    pub(crate) async fn prepare_with(
        &self,
        name: &str,
        lines: &str,
        base: &str,
        settings: PrepareSettings,
    ) -> String {
        let mut client = DataPrepServiceClient::new(self.channel());
        let upload = self.upload(lines).await;
        let asked = PrepareRequest {
            name: name.to_owned(),
            records: Some(RecordSource {
                source: Some(record_source::Source::Upload(upload)),
                ..Default::default()
            }),
            tokenizer: Some(TokenizerSource {
                source: Some(tokenizer_source::Source::Base(base.to_owned())),
            }),
            settings: Some(settings),
            ..Default::default()
        };
        let job = client
            .prepare(asked)
            .await
            .unwrap()
            .into_inner()
            .job
            .unwrap()
            .id;
        let mut ended = Job::default();
        wait_until("the data set is prepared", async || {
            let asked = GetPreparationRequest { job: job.clone() };
            ended = client
                .get_preparation(asked)
                .await
                .unwrap()
                .into_inner()
                .job
                .unwrap();
            is_final(&ended)
        })
        .await;
        assert_eq!(ended.state(), JobState::Succeeded, "{:?}", ended.error);
        let found = client
            .get_dataset(GetDatasetRequest {
                dataset: ended.result,
            })
            .await
            .unwrap();
        found.into_inner().dataset.unwrap().digest
    }

    pub(crate) async fn create(&self, asked: CreateJobRequest) -> String {
        self.trainer()
            .create_job(asked)
            .await
            .unwrap()
            .into_inner()
            .job
            .unwrap()
            .id
    }

    pub(crate) async fn job(&self, id: &str) -> Job {
        let asked = GetJobRequest { job: id.to_owned() };
        self.trainer()
            .get_job(asked)
            .await
            .unwrap()
            .into_inner()
            .job
            .unwrap()
    }

    pub(crate) async fn wait_for(&self, id: &str, state: JobState) -> Job {
        let mut job = Job::default();
        wait_until(&format!("job {id} is {state:?}"), async || {
            job = self.job(id).await;
            assert!(job.state() == state || !is_final(&job), "{job:?}");
            job.state() == state
        })
        .await;
        job
    }

    /// Watches a job from a step on until `enough` steps or its end. Returns the steps and the last
    /// record.
    pub(crate) async fn watch(&self, id: &str, from_step: u64, enough: usize) -> (Vec<Step>, Job) {
        let asked = WatchJobRequest {
            job: id.to_owned(),
            from_step,
        };
        let mut updates = self.trainer().watch_job(asked).await.unwrap().into_inner();
        let (mut steps, mut job) = (Vec::new(), Job::default());
        while let Some(update) = updates.next().await {
            match update.unwrap().update.unwrap() {
                Update::Step(step) => steps.push(step),
                Update::Job(record) => job = record,
            }
            if steps.len() >= enough {
                break;
            }
        }
        (steps, job)
    }

    /// Waits until a step is in the job's log.
    pub(crate) async fn wait_for_step(&self, id: &str, step: u64) {
        let id = id.parse().unwrap();
        wait_until("the job has taken steps", async || {
            let lines = togi_trainer::papers::log::read(self.store(), &id, step)
                .await
                .unwrap();
            !lines.is_empty()
        })
        .await;
    }
}

/// Settings for rows of at most `max_length` ids.
pub(crate) fn settings(max_length: u32) -> PrepareSettings {
    PrepareSettings {
        max_length: Some(max_length),
        ..Default::default()
    }
}

pub(crate) fn is_final(job: &Job) -> bool {
    State::from_proto(job.state()).is_some_and(State::is_final)
}

/// How long a condition must hold before a test treats it as stable.
pub(crate) const A_WHILE: Duration = Duration::from_millis(600);
