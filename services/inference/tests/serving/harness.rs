//! A replica for tests: real gRPC on a free port, a real store in a temporary folder, and a real
//! nats-server or none.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use togi_inference::{Config, Replica};
use togi_proto::inference::v1::generate_request::Prompt;
use togi_proto::inference::v1::generate_response::Event;
use togi_proto::inference::v1::inference_service_client::InferenceServiceClient;
use togi_proto::inference::v1::{
    Finished, GenerateRequest, GenerateResponse, Instruction, ListAdaptersRequest,
    ListAdaptersResponse, Options, Started, TokenLogprobs,
};
use togi_runtime::config::{NatsConfig, StoreConfig};
use togi_runtime::rpc::server::Services;
use togi_runtime::{Bus, Context, Readiness, Stopper, Store, Tasks, rpc};
use togi_testing::{NatsServer, wait_until, within};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::bases;

/// An address without a listener.
const NOBODY: &str = "nats://127.0.0.1:9";

/// The base that a replica serves.
#[derive(Clone, Copy)]
pub enum BaseKind {
    Random,
    Table,
}

/// A replica before its start.
pub struct Setup {
    nats: Option<NatsServer>,
    folder: Arc<tempfile::TempDir>,
    /// The URL of a NATS server that another replica owns.
    nats_url: Option<String>,
    instance: String,
    pub store: Store,
    pub config: Config,
}

/// A running replica.
pub struct System {
    pub store: Store,
    pub bus: Bus,
    pub replica: Arc<Replica>,
    pub readiness: Readiness,
    pub stopper: Stopper,
    pub base_folder: PathBuf,
    endpoint: String,
    served: tokio::task::JoinHandle<togi_runtime::Result<()>>,
    nats: Option<NatsServer>,
    nats_url: String,
    config: Config,
    folder: Arc<tempfile::TempDir>,
}

impl Setup {
    pub async fn new(base: BaseKind) -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let base_folder = folder.path().join("base");
        match base {
            BaseKind::Random => bases::write_random(&base_folder),
            BaseKind::Table => bases::write_table(&base_folder),
        };
        let store_config = StoreConfig::folder(&folder.path().join("store")).unwrap();
        std::fs::create_dir_all(folder.path().join("store")).unwrap();
        let file = folder.path().join("config.toml");
        let url = |path: &std::path::Path| format!("file://{}", path.display());
        let text = format!(
            "base = \"test\"\n[bases]\ntest = {{ url = \"{}\" }}\n[store]\nurl = \"{}\"\n[adapters]\nreconcile_seconds = 1\n",
            url(&base_folder),
            store_config.url,
        );
        std::fs::write(&file, text).unwrap();
        Setup {
            nats: None,
            nats_url: None,
            instance: "replica-1".to_owned(),
            store: Store::open(&store_config).await.unwrap(),
            config: Config::load(&[file]).unwrap(),
            folder: Arc::new(folder),
        }
    }

    pub async fn with_nats(mut self) -> Setup {
        self.nats = Some(NatsServer::start());
        self
    }

    pub fn base_folder(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    pub fn nats_mut(&mut self) -> &mut NatsServer {
        self.nats.as_mut().expect("a test with a bus")
    }

    pub async fn start(self) -> System {
        let stopper = Stopper::new();
        let own = self.nats.as_ref().map(NatsServer::url);
        let nats_url = own.or(self.nats_url.clone()).unwrap_or(NOBODY.to_owned());
        let nats = NatsConfig::at(&nats_url);
        let bus = Bus::connect_later(&nats, &self.instance, &stopper)
            .await
            .unwrap();
        let context = Context {
            stopper: stopper.clone(),
            bus: bus.clone(),
            store: self.store.clone(),
            readiness: Readiness::new(),
            instance: self.instance.clone(),
        };
        let config = self.config.clone();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let base_folder = self.base_folder();
        let (mut services, mut tasks) = (Services::new(), Tasks::new(&stopper));
        let replica =
            togi_inference::start_replica(self.config, &context, &mut services, &mut tasks)
                .unwrap();
        let readiness = context.readiness.clone();
        let served = tokio::spawn(async move {
            let served =
                rpc::server::serve(listener, services, &context.readiness, &context.stopper).await;
            context.stopper.stop();
            served.and(tasks.join().await)
        });
        System {
            store: self.store,
            bus,
            replica,
            readiness,
            stopper,
            base_folder,
            endpoint,
            served,
            nats: self.nats,
            nats_url,
            config,
            folder: self.folder,
        }
    }

    /// Starts and waits until it is ready.
    pub async fn ready(self) -> System {
        let system = self.start().await;
        within("the replica is ready", system.readiness.ready()).await;
        system
    }
}

impl System {
    /// Another replica over the same store, base and bus.
    pub fn beside(&self, instance: &str) -> Setup {
        Setup {
            nats: None,
            nats_url: Some(self.nats_url.clone()),
            instance: instance.to_owned(),
            store: self.store.clone(),
            config: self.config.clone(),
            folder: Arc::clone(&self.folder),
        }
    }

    pub fn nats_mut(&mut self) -> &mut NatsServer {
        self.nats.as_mut().expect("a test with a bus")
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub async fn client(&self) -> InferenceServiceClient<Channel> {
        InferenceServiceClient::connect(self.endpoint.clone())
            .await
            .unwrap()
    }

    /// Sends a request and receives the whole answer.
    pub async fn ask(&self, request: GenerateRequest) -> Result<Answer, Status> {
        let mut answer = OpenAnswer::new(self.client().await.generate(request).await?.into_inner());
        answer.rest().await?;
        answer.whole()
    }

    /// Sends a request for several answers and receives them all, in their order.
    pub async fn ask_all(&self, request: GenerateRequest) -> Result<Vec<Answer>, Status> {
        let count = request.options.as_ref().and_then(|options| options.n);
        let mut stream = self.client().await.generate(request).await?.into_inner();
        let mut parts: Vec<Part> = Vec::new();
        parts.resize_with(count.unwrap_or(1) as usize, Part::default);
        while let Some(message) = stream.message().await? {
            let event = message.event.expect("an event");
            match event {
                // The start is that of all.
                Event::Started(started) => parts
                    .iter_mut()
                    .for_each(|part| part.take(Event::Started(started.clone()))),
                event => parts[message.choice as usize].take(event),
            }
        }
        Ok(parts.into_iter().map(Part::whole).collect())
    }

    /// Sends a request, and leaves its answer to the caller.
    pub async fn open(&self, request: GenerateRequest) -> Result<OpenAnswer, Status> {
        Ok(OpenAnswer::new(
            self.client().await.generate(request).await?.into_inner(),
        ))
    }

    /// Sends a request under a client's name.
    pub async fn open_as(
        &self,
        client: &str,
        request: GenerateRequest,
    ) -> Result<OpenAnswer, Status> {
        let mut request = Request::new(request);
        let name = client.parse().unwrap();
        request.metadata_mut().insert("togi-client", name);
        let answer = self.client().await.generate(request).await?;
        Ok(OpenAnswer::new(answer.into_inner()))
    }

    pub async fn list(&self) -> ListAdaptersResponse {
        self.client()
            .await
            .list_adapters(ListAdaptersRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    /// The generation that an alias serves.
    pub fn serving(&self, alias: &str) -> Option<String> {
        let served = self.replica.served()?;
        let serving = served.aliases.get(&alias.parse().unwrap())?;
        Some(serving.adapter.generation().to_string())
    }

    pub async fn until_serving(&self, alias: &str, generation: &str) {
        let what = format!("{alias} serves {generation}");
        wait_until(&what, async || {
            self.serving(alias).as_deref() == Some(generation)
        })
        .await;
    }

    pub fn active(&self) -> usize {
        self.replica.load().map_or(0, |load| load.active())
    }

    pub fn waiting(&self) -> usize {
        self.replica.load().map_or(0, |load| load.waiting())
    }

    /// Waits until these numbers of requests are active and wait.
    pub async fn until_inside(&self, active: usize, waiting: usize) {
        let what = format!("{active} are active and {waiting} wait");
        wait_until(&what, async || {
            (self.active(), self.waiting()) == (active, waiting)
        })
        .await;
    }

    /// Waits until nothing is inside, and checks that nothing is left behind.
    pub async fn until_empty(&self) {
        self.until_inside(0, 0).await;
        let load = self.replica.load().unwrap();
        wait_until("no page is used", async || {
            load.pages_used() + self.replica.cached_tokens() + load.waiting_tokens() == 0
        })
        .await;
    }

    /// Stops and returns the result that the process would end with.
    pub async fn stop(self) -> togi_runtime::Result<()> {
        self.stopper.stop();
        within("the replica ends", self.served).await.unwrap()
    }
}

/// An answer, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub started: Started,
    pub prompt_logprobs: Vec<TokenLogprobs>,
    pub text: String,
    pub ids: Vec<u32>,
    pub logprobs: Vec<TokenLogprobs>,
    pub finished: Finished,
}

/// The part of an answer that has been received.
#[derive(Default)]
pub struct Part {
    pub started: Option<Started>,
    pub prompt_logprobs: Vec<TokenLogprobs>,
    pub text: String,
    pub ids: Vec<u32>,
    pub logprobs: Vec<TokenLogprobs>,
    pub finished: Option<Finished>,
}

/// A single answer that is being received.
pub struct OpenAnswer {
    stream: Streaming<GenerateResponse>,
    part: Part,
}

impl Deref for OpenAnswer {
    type Target = Part;

    fn deref(&self) -> &Part {
        &self.part
    }
}

impl OpenAnswer {
    pub fn new(stream: Streaming<GenerateResponse>) -> OpenAnswer {
        OpenAnswer {
            stream,
            part: Part::default(),
        }
    }

    /// Receives one message; false at the end.
    pub async fn next(&mut self) -> Result<bool, Status> {
        let Some(message) = self.stream.message().await? else {
            return Ok(false);
        };
        assert_eq!(message.choice, 0, "there is one answer");
        self.part.take(message.event.expect("an event"));
        Ok(true)
    }

    pub async fn rest(&mut self) -> Result<(), Status> {
        while self.next().await? {}
        Ok(())
    }

    /// Receives messages until the first text.
    pub async fn first_text(&mut self) {
        while self.text.is_empty() {
            assert!(self.next().await.unwrap(), "the answer has text");
        }
    }

    pub fn whole(self) -> Result<Answer, Status> {
        Ok(self.part.whole())
    }
}

impl Part {
    fn take(&mut self, event: Event) {
        assert!(self.finished.is_none(), "nothing comes after the end");
        match event {
            Event::Started(started) => {
                assert!(self.started.is_none(), "an answer starts once");
                self.started = Some(started);
            }
            Event::PromptLogprobs(of_prompt) => {
                assert!(self.ids.is_empty(), "the prompt comes before the answer");
                self.prompt_logprobs.extend(of_prompt.tokens);
            }
            Event::Piece(piece) => {
                assert!(self.started.is_some(), "the start comes first");
                assert_eq!(piece.token_ids.len(), 1, "a piece is a token");
                assert!(piece.logprobs.len() <= 1, "aligned with the token");
                self.text.push_str(&piece.text);
                self.ids.extend(piece.token_ids);
                self.logprobs.extend(piece.logprobs);
            }
            Event::Finished(finished) => self.finished = Some(finished),
        }
    }

    fn whole(self) -> Answer {
        let finished = self.finished.expect("an answer that ends says why");
        assert_eq!(
            finished.completion_tokens as usize,
            self.ids.len(),
            "every id is reported once"
        );
        Answer {
            started: self.started.expect("an answer starts"),
            prompt_logprobs: self.prompt_logprobs,
            text: self.text,
            ids: self.ids,
            logprobs: self.logprobs,
            finished,
        }
    }
}

/// A question by instruction.
pub fn question(adapter: &str, instruction: &str, options: Options) -> GenerateRequest {
    let prompt = Prompt::Instruction(Instruction {
        instruction: instruction.into(),
        input: String::new(),
    });
    GenerateRequest {
        adapter: adapter.into(),
        prompt: Some(prompt),
        options: Some(options),
    }
}

/// A raw prompt.
pub fn raw(adapter: &str, text: &str, options: Options) -> GenerateRequest {
    let prompt = Some(Prompt::Raw(text.into()));
    GenerateRequest {
        adapter: adapter.into(),
        prompt,
        options: Some(options),
    }
}

/// Greedy, without a ban of n-grams.
pub fn greedy(max_new_tokens: u32) -> Options {
    Options {
        greedy: Some(true),
        no_repeat_ngram_size: Some(0),
        max_new_tokens: Some(max_new_tokens),
        ..Options::default()
    }
}
