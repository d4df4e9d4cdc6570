//! The connections to a deployment, and an answer as its client sees it: which tokens came when.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use togi_proto::inference::v1::generate_request::Prompt;
use togi_proto::inference::v1::generate_response::Event;
use togi_proto::inference::v1::inference_service_client::InferenceServiceClient;
use togi_proto::inference::v1::{
    GenerateRequest, GenerateResponse, ListAdaptersRequest, ListAdaptersResponse, Options,
};
use togi_proto::trainer::v1::adapter_service_client::AdapterServiceClient;
use togi_proto::trainer::v1::{Adapter, PromoteAdapterRequest};
use togi_runtime::rpc::client::plain_channel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// The services of a deployment.
pub(crate) struct Deployment {
    inference: Vec<InferenceServiceClient<Channel>>,
    next: AtomicUsize,
    trainer: AdapterServiceClient<Channel>,
    /// Address of the metrics, `host:port`.
    admin: String,
}

/// A request whose answer always has as many tokens as it asks for: greedy, beyond any end of
/// sequence.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// An alias or a generation; empty for the base alone.
    pub(crate) adapter: String,
    /// The prompt, and how many tokens it has.
    pub(crate) prompt: String,
    pub(crate) prompt_tokens: usize,
    /// Tokens of the answer.
    pub(crate) new: usize,
}

/// An answer that is received.
pub(crate) struct Answer {
    stream: Streaming<GenerateResponse>,
    /// When the request was sent.
    pub(crate) sent: Instant,
    /// The generation that answers; empty for the base.
    pub(crate) generation: String,
    /// The tokens that have come, and when each did.
    pub(crate) ids: Vec<u32>,
    pub(crate) times: Vec<Instant>,
}

impl Deployment {
    pub(crate) fn new(
        inference: &str,
        trainer: &str,
        admin: &str,
        connections: usize,
    ) -> Result<Self> {
        ensure!(connections > 0, "--connections must be at least 1");
        let connect = |_| Ok(InferenceServiceClient::new(plain_channel(inference)?));
        Ok(Self {
            inference: (0..connections).map(connect).collect::<Result<_>>()?,
            next: AtomicUsize::new(0),
            trainer: AdapterServiceClient::new(plain_channel(trainer)?),
            admin: admin.trim_start_matches("http://").trim_matches('/').into(),
        })
    }

    /// Returns one of the connections, each in its turn.
    fn inference(&self) -> InferenceServiceClient<Channel> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.inference[next % self.inference.len()].clone()
    }

    /// Sends a request, and returns once the server has begun to answer.
    pub(crate) async fn open(&self, question: &Question) -> Result<Answer, tonic::Status> {
        let request = question.to_proto();
        let mut client = self.inference();
        let sent = Instant::now();
        Ok(Answer {
            stream: client.generate(request).await?.into_inner(),
            sent,
            generation: String::new(),
            ids: Vec::new(),
            times: Vec::new(),
        })
    }

    /// Sends a request and receives the whole answer.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Answer> {
        let mut answer = self.open(question).await?;
        while answer.next(question).await? {}
        ensure!(
            answer.ids.len() == question.new,
            "the answer has {} tokens, not {}",
            answer.ids.len(),
            question.new
        );
        Ok(answer)
    }

    /// Returns what the replica serves.
    pub(crate) async fn served(&self) -> Result<ListAdaptersResponse> {
        let mut client = self.inference();
        let served = client.list_adapters(ListAdaptersRequest {}).await?;
        Ok(served.into_inner())
    }

    /// Promotes an alias, as people and pipelines do it.
    pub(crate) async fn promote(&self, alias: &str, generation: &str) -> Result<()> {
        let request = PromoteAdapterRequest {
            alias: alias.into(),
            generation: generation.into(),
            allow_base_mismatch: false,
        };
        self.trainer.clone().promote_adapter(request).await?;
        Ok(())
    }

    /// Returns all published adapters.
    pub(crate) async fn published(&self) -> Result<Vec<Adapter>> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = togi_proto::trainer::v1::ListAdaptersRequest {
                page_size: 1000,
                page_token,
            };
            let page = self.trainer.clone().list_adapters(request).await?;
            let page = page.into_inner();
            all.extend(page.adapters);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    /// Returns the value of a gauge of the replica, by its name for Prometheus.
    pub(crate) async fn gauge(&self, name: &str) -> Result<f64> {
        let mut connection = TcpStream::connect(&self.admin).await?;
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.admin);
        connection.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        connection.read_to_string(&mut text).await?;
        let line = text.lines().find(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' '])
        });
        let line = line.with_context(|| format!("the metrics have no {name}"))?;
        let value = line.rsplit(' ').next().unwrap_or_default();
        value.parse().with_context(|| format!("{line:?} of {name}"))
    }

    /// Waits until no answer is active and none waits.
    pub(crate) async fn until_idle(&self) -> Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            let active = self.gauge("togi_inference_active").await?;
            if active + self.gauge("togi_inference_waiting").await? == 0.0 {
                return Ok(());
            }
        }
    }
}

impl Question {
    fn to_proto(&self) -> GenerateRequest {
        GenerateRequest {
            adapter: self.adapter.clone(),
            prompt: Some(Prompt::Raw(self.prompt.clone())),
            options: Some(Options {
                greedy: Some(true),
                no_repeat_ngram_size: Some(0),
                ignore_eos: Some(true),
                max_new_tokens: Some(u32::try_from(self.new).unwrap_or(u32::MAX)),
                ..Options::default()
            }),
        }
    }
}

impl Answer {
    /// Receives a message; false at the end.
    ///
    /// # Errors
    /// The server's status; an answer that breaks off; a prompt of another length than it was made
    /// with.
    pub(crate) async fn next(&mut self, question: &Question) -> Result<bool> {
        let Some(message) = self.stream.message().await? else {
            bail!("the answer broke off");
        };
        match message.event.context("a message without an event")? {
            Event::Started(started) => {
                ensure!(
                    started.prompt_tokens as usize == question.prompt_tokens,
                    "the server counts {} tokens in a prompt of {}",
                    started.prompt_tokens,
                    question.prompt_tokens
                );
                self.generation = started.generation;
            }
            Event::Piece(piece) => {
                let now = Instant::now();
                self.times.extend(piece.token_ids.iter().map(|_| now));
                self.ids.extend(piece.token_ids);
            }
            Event::Finished(_) => return Ok(false),
            Event::PromptLogprobs(_) => {}
        }
        Ok(true)
    }

    /// Returns the time to the first token.
    pub(crate) fn to_first_token(&self) -> Option<Duration> {
        Some(*self.times.first()? - self.sent)
    }

    /// Returns the times between tokens.
    pub(crate) fn between_tokens(&self) -> impl Iterator<Item = Duration> {
        self.times.windows(2).map(|pair| pair[1] - pair[0])
    }
}
