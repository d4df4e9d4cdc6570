//! Admits a request: it takes a permit, tokenizes the prompt and hands the job to the engine. A
//! replica has one [`Admission`], and so has [`crate::local::Local`].

use std::sync::Arc;
use std::time::Instant;

use togi_model::{Engine, decode};
use togi_tokens::Tokenizer;
use tokio::sync::mpsc;
use tracing::Span;

use crate::engine::account::Account;
use crate::engine::door::Door;
use crate::engine::group::Group;
use crate::engine::load::Permit;
use crate::engine::request::{Answerer, Caller, Request};
use crate::engine::sequence::{self, Job};
use crate::engine::terms::Terms;
use crate::error::{Error, Result};
use crate::event::{self, Event, Events, Kind, Started};
use crate::pool::ReadyAdapter;
use crate::semconv;

/// Admits requests to one engine.
pub(crate) struct Admission {
    pub(crate) base_name: String,
    pub(crate) engine: Arc<Engine>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) door: Arc<Door>,
}

/// A request with a permit for each of its answers.
pub(crate) struct Admitted {
    pub(crate) request: Request,
    caller: Caller,
    permits: Vec<Permit>,
    arrived: Instant,
}

impl Admitted {
    /// Returns the time at which the request's time is over.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let times = [self.caller.timeout, self.request.max_time];
        let least = times.into_iter().flatten().min()?;
        self.arrived.checked_add(least)
    }
}

impl Admission {
    /// Takes a permit for each answer of a request, before any costly work.
    ///
    /// # Errors
    /// [`Error::Full`] when too few are left, [`Error::Stopping`] when the door is closed.
    pub(crate) fn admit(
        &self,
        request: Request,
        caller: Caller,
        arrived: Instant,
    ) -> Result<Admitted> {
        let count = request.options.choices as usize;
        let permits = self.door.enter(&caller.client, request.priority, count)?;
        Ok(Admitted {
            permits,
            request,
            caller,
            arrived,
        })
    }

    /// Tokenizes the prompt and hands each answer's job to the engine; returns the answers' events.
    ///
    /// # Errors
    /// [`Error::Field`] for a prompt without tokens or with too many, [`Error::Full`] when the
    /// prompts that wait have too many, [`Error::Stopping`] when the door is closed.
    pub(crate) async fn answer(
        &self,
        admitted: Admitted,
        adapter: Option<Arc<ReadyAdapter>>,
    ) -> Result<Events> {
        let deadline = admitted.deadline();
        let Admitted {
            request,
            caller,
            mut permits,
            arrived,
        } = admitted;
        let prompt: Arc<[u32]> = self.tokenize(&request).await?.into();
        let options = &request.options;
        let longest = decode::max_len(prompt.len(), &options.sampling, self.engine.config());
        let pages = self.door.pages("options.max_new_tokens", longest)?;
        // The answers that begin together read the prompt once.
        let together = self.door.together(pages, request.priority);
        for permits in permits.chunks_mut(together) {
            self.door.wait(&mut permits[0], prompt.len())?;
        }
        let account = Account {
            client: caller.client,
            adapter: adapter.as_deref().map(ReadyAdapter::generation),
            priority: request.priority,
        };
        let capacity = sequence::max_events(prompt.len(), options, self.engine.config());
        let (events, answers) = mpsc::channel(capacity);
        let kind = Kind::Started(Started {
            generation: adapter.as_deref().map(ReadyAdapter::generation),
            prompt_tokens: prompt.len(),
            seed: options.sampling.seed,
        });
        // The channel is empty, and `answers` is still here.
        let _ = events.try_send(Ok(Event { choice: 0, kind }));
        let mut jobs = (0..options.choices)
            .zip(permits)
            .map(|(choice, permit)| Job {
                prompt: prompt.clone(),
                options: options.of_choice(choice),
                choice,
                adapter: adapter.clone(),
                terms: Terms {
                    permit,
                    account: account.clone(),
                    pages,
                    arrived,
                    deadline,
                    passed_over: 0,
                },
                events: events.clone(),
                span: self.span(&request, adapter.as_deref()),
            });
        while let Some(first) = jobs.next() {
            let others = jobs.by_ref().take(together - 1).collect();
            self.door.submit(Group { first, others })?;
        }
        Ok(event::stream(answers, options.choices))
    }

    /// Tokenizes the prompt on a thread. Checks that it has a token, and that the model's longest
    /// sequence has room for one more.
    async fn tokenize(&self, request: &Request) -> Result<Vec<u32>> {
        let (tokenizer, text) = (self.tokenizer.clone(), request.prompt.clone());
        let encode = move || Tokenizer::encode(&tokenizer, &text);
        let prompt = tokio::task::spawn_blocking(encode)
            .await
            .map_err(|error| Error::Broken(format!("tokenizing ended: {error}")))?;
        let longest = self.engine.config().max_position_embeddings;
        if prompt.len() >= longest {
            let tokens = prompt.len();
            let reason = format!(
                "the prompt has {tokens} tokens; the model's longest sequence is {longest}, the \
                 answer included"
            );
            return Err(Error::field(request.prompt_field, reason));
        }
        if prompt.is_empty() {
            return Err(Error::field(
                request.prompt_field,
                "the prompt has no tokens",
            ));
        }
        Ok(prompt)
    }

    fn span(&self, request: &Request, adapter: Option<&ReadyAdapter>) -> Span {
        let sampling = &request.options.sampling;
        let asked = match &request.answerer {
            Answerer::Base => self.base_name.clone(),
            named => named.name(),
        };
        let answers = adapter.map_or_else(
            || self.base_name.clone(),
            |adapter| adapter.generation().to_string(),
        );
        tracing::info_span!(
            "text_completion",
            { semconv::GEN_AI_OPERATION_NAME } = semconv::TEXT_COMPLETION,
            { semconv::GEN_AI_PROVIDER_NAME } = semconv::PROVIDER,
            { semconv::GEN_AI_REQUEST_MODEL } = asked,
            { semconv::GEN_AI_REQUEST_TEMPERATURE } = f64::from(sampling.temperature),
            { semconv::GEN_AI_REQUEST_TOP_P } = f64::from(sampling.top_p),
            { semconv::GEN_AI_REQUEST_TOP_K } = sampling.top_k,
            { semconv::GEN_AI_REQUEST_MAX_TOKENS } = sampling.max_new_tokens,
            { semconv::GEN_AI_REQUEST_SEED } = sampling.seed,
            { semconv::GEN_AI_RESPONSE_MODEL } = answers,
            { semconv::GEN_AI_USAGE_INPUT_TOKENS } = tracing::field::Empty,
            { semconv::GEN_AI_USAGE_OUTPUT_TOKENS } = tracing::field::Empty,
            { semconv::GEN_AI_RESPONSE_FINISH_REASONS } = tracing::field::Empty,
            { semconv::ERROR_TYPE } = tracing::field::Empty,
        )
    }
}
