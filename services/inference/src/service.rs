//! The gRPC edge: a request comes in, is checked, takes a place, and its answer streams out. Nothing here computes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures::{Stream, stream};
use togi_proto::inference::v1 as proto;
use togi_proto::inference::v1::inference_service_server::InferenceService;
use togi_tokens::Tokenizer;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use tracing::Span;

use crate::adapters::served::{Refusal, Serving};
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::question::Question;
use crate::replica::{Ready, Replica};
use crate::semconv;
use crate::sequence::{self, Event, Finished, Job, Reason};

/// The service over a replica.
#[derive(Clone)]
pub struct Service {
    replica: Arc<Replica>,
}

impl Service {
    /// Serves a replica, which may still be loading.
    pub fn new(replica: Arc<Replica>) -> Service {
        Service { replica }
    }
}

type Answers =
    Pin<Box<dyn Stream<Item = std::result::Result<proto::GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl InferenceService for Service {
    type GenerateStream = Answers;

    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> std::result::Result<Response<Answers>, Status> {
        let arrived = Instant::now();
        Ok(Response::new(
            self.answer(request.into_inner(), arrived).await?,
        ))
    }

    async fn list_adapters(
        &self,
        _request: Request<proto::ListAdaptersRequest>,
    ) -> std::result::Result<Response<proto::ListAdaptersResponse>, Status> {
        let ready = self.replica.ready()?;
        let served = ready.adapters.shelf.served();
        Ok(Response::new(proto::ListAdaptersResponse {
            adapters: served.aliases.iter().map(served_to_proto).collect(),
            base_digest: ready.base_digest.clone(),
            replica: self.replica.name().to_owned(),
            rejected: served.refused.iter().map(refused_to_proto).collect(),
        }))
    }
}

impl Service {
    /// Everything before the first token. The cheap checks come first, the place at the door before what costs.
    async fn answer(&self, request: proto::GenerateRequest, arrived: Instant) -> Result<Answers> {
        let ready = self.replica.ready()?;
        let question = Question::from_request(request, ready.max_prompt_bytes)?;
        let place = ready.door.enter()?;
        let generation = ready.adapters.resolve(&question.answerer).await?;
        let span = span(&question, generation.as_deref(), ready);
        let prompt = tokenize(ready, &question).await?;
        let max_positions = ready.network.config().max_position_embeddings;
        let room = sequence::most_events(prompt.len(), &question.options, max_positions);
        let started = proto::Started {
            generation: generation
                .as_ref()
                .map_or_else(String::new, |g| g.digest().to_owned()),
            prompt_tokens: count(prompt.len()),
            seed: question.options.sampling.seed,
        };
        let (events, answer) = mpsc::channel(room);
        let options = question.options;
        ready.door.submit(Job {
            prompt,
            options,
            generation,
            arrived,
            events,
            _place: place,
            span,
        })?;
        Ok(Box::pin(answers(started, answer)))
    }
}

/// Tokenizes the prompt on a thread and checks that the model can read it and say a token after it.
async fn tokenize(ready: &Ready, question: &Question) -> Result<Vec<u32>> {
    let (tokenizer, text) = (ready.tokenizer.clone(), question.prompt.clone());
    let encode = move || Tokenizer::encode(&tokenizer, &text);
    let prompt = tokio::task::spawn_blocking(encode)
        .await
        .map_err(|error| Error::Broken(format!("tokenizing ended: {error}")))?;
    let longest = ready.network.config().max_position_embeddings;
    if prompt.len() >= longest {
        let tokens = prompt.len();
        let reason = format!(
            "the prompt has {tokens} tokens; the model's longest sequence is {longest}, the answer included"
        );
        return Err(Error::field(question.prompt_field, reason));
    }
    if prompt.is_empty() {
        return Err(Error::field(
            question.prompt_field,
            "the prompt has no tokens",
        ));
    }
    Ok(prompt)
}

fn span(question: &Question, generation: Option<&Generation>, ready: &Ready) -> Span {
    let sampling = &question.options.sampling;
    let model = match question.answerer.name() {
        "" => ready.base_name.as_str(),
        name => name,
    };
    tracing::info_span!(
        "text_completion",
        { semconv::GEN_AI_OPERATION_NAME } = semconv::TEXT_COMPLETION,
        { semconv::GEN_AI_PROVIDER_NAME } = semconv::PROVIDER,
        { semconv::GEN_AI_REQUEST_MODEL } = model,
        { semconv::GEN_AI_REQUEST_TEMPERATURE } = f64::from(sampling.temperature),
        { semconv::GEN_AI_REQUEST_TOP_P } = f64::from(sampling.top_p),
        { semconv::GEN_AI_REQUEST_TOP_K } = sampling.top_k,
        { semconv::GEN_AI_REQUEST_MAX_TOKENS } = sampling.max_new_tokens,
        { semconv::GEN_AI_REQUEST_SEED } = sampling.seed,
        { semconv::GEN_AI_RESPONSE_MODEL } =
            generation.map_or(ready.base_name.as_str(), Generation::digest),
        { semconv::GEN_AI_USAGE_INPUT_TOKENS } = tracing::field::Empty,
        { semconv::GEN_AI_USAGE_OUTPUT_TOKENS } = tracing::field::Empty,
        { semconv::GEN_AI_RESPONSE_FINISH_REASONS } = tracing::field::Empty,
        { semconv::ERROR_TYPE } = tracing::field::Empty,
    )
}

/// How far an answer's stream is.
enum Place {
    Start(proto::Started),
    Middle,
    End,
}

/// The answer as a client hears it. An answer that breaks off without its end is an error, never a short answer.
fn answers(
    started: proto::Started,
    events: mpsc::Receiver<Result<Event>>,
) -> impl Stream<Item = std::result::Result<proto::GenerateResponse, Status>> {
    stream::unfold(
        (Place::Start(started), events),
        |(place, mut events)| async move {
            match place {
                Place::Start(started) => {
                    let event = proto::generate_response::Event::Started(started);
                    Some((Ok(response(event)), (Place::Middle, events)))
                }
                Place::Middle => match events.recv().await {
                    Some(Ok(Event::Piece(piece))) => {
                        let piece = proto::Piece {
                            text: piece.text,
                            token_ids: piece.ids,
                        };
                        let event = proto::generate_response::Event::Piece(piece);
                        Some((Ok(response(event)), (Place::Middle, events)))
                    }
                    Some(Ok(Event::Finished(finished))) => {
                        let event =
                            proto::generate_response::Event::Finished(end_to_proto(&finished));
                        Some((Ok(response(event)), (Place::End, events)))
                    }
                    Some(Err(error)) => Some((Err(error.into()), (Place::End, events))),
                    None => {
                        let error = Error::Broken("the engine ended before the answer".into());
                        Some((Err(error.into()), (Place::End, events)))
                    }
                },
                Place::End => None,
            }
        },
    )
}

fn response(event: proto::generate_response::Event) -> proto::GenerateResponse {
    proto::GenerateResponse { event: Some(event) }
}

fn end_to_proto(finished: &Finished) -> proto::Finished {
    let reason = match finished.reason {
        Reason::Eos => proto::FinishReason::Eos,
        Reason::Stop => proto::FinishReason::Stop,
        Reason::Length => proto::FinishReason::Length,
    };
    proto::Finished {
        reason: reason.into(),
        prompt_tokens: count(finished.prompt_tokens),
        completion_tokens: count(finished.completion_tokens),
        seconds_to_first_token: finished.to_first_token.as_secs_f64(),
        seconds: finished.total.as_secs_f64(),
    }
}

fn served_to_proto((alias, serving): (&String, &Serving)) -> proto::ServedAdapter {
    proto::ServedAdapter {
        alias: alias.clone(),
        generation: serving.generation.digest().to_owned(),
        load_time: Some(timestamp(serving.since)),
    }
}

fn refused_to_proto((alias, refusal): (&String, &Refusal)) -> proto::RejectedAdapter {
    proto::RejectedAdapter {
        alias: alias.clone(),
        generation: refusal.generation.clone(),
        reason: refusal.reason.clone(),
    }
}

fn timestamp(time: SystemTime) -> pbjson_types::Timestamp {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    pbjson_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
