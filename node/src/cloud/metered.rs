//! A provider's upstream with its purse: reserve the most that a request may cost, send, settle what it did cost.
//!
//! The reservation is a true upper bound, so that any number of parallel requests stays within the purse: a token is
//! at least one byte of the body, images count at the dearest known rate, and an answer without a limit is given one.

use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;
use shoal_routing::{MicroUsd, Offer, Price, Tokens};
use tower::{Service, ServiceExt};

use super::prices::Quote;
use super::purse::{Purse, Reservation};
use super::traffic::{Call, Traffic};
use crate::api::body::{Body, Edit, Text};
use crate::egress::EgressMark;
use crate::pipeline::tap::Tap;
use crate::sound::{self, Bill, Ear};
use crate::upstream::{ApiPath, Event, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse};

/// Limit given to an answer that has none, in tokens: room for a long answer and a model's thoughts before it.
/// Without a limit the price of a request would have no bound to reserve.
pub const DEFAULT_OUTPUT: Tokens = Tokens(8192);

/// Tokens that one image is reserved at; the dearest known model bills about this much for the largest.
const IMAGE_TOKENS: u32 = 50_000;

/// Bytes of a token on average, for what is booked when a provider gives no count.
const BYTES_PER_TOKEN: u32 = 4;

/// How many list prices a token of the tier `priority` may cost; providers ask for 1.7 to 2.
const PRIORITY: u64 = 2;

/// Fields by which a request would cost what nothing here can bound: other models than the one that is priced, what a
/// vendor sells beside tokens, answers that are paid for and never shown.
const UNBOUND: [&str; 5] = ["models", "route", "plugins", "web_search_options", "best_of"];

/// Most answers to one prompt that are believed; the API refuses more anyway.
const MAX_N: u32 = 128;

/// Wraps an upstream with a purse; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metered<S> {
    inner: S,
    /// The provider's; `None` where another node pays it.
    purse: Option<Purse>,
    quote: Quote,
    traffic: Traffic,
}

impl<S> Metered<S> {
    /// Wraps `inner`, whose requests are paid from `purse` at the price of `quote` and counted in `traffic`.
    pub fn new(inner: S, purse: Purse, quote: Quote, traffic: Traffic) -> Self {
        Self { inner, purse: Some(purse), quote, traffic }
    }

    /// Wraps the way to a node that has the provider's key, and pays it: here only a key that has a budget pays, at the
    /// price that the node told.
    pub fn forwarded(inner: S, offer: &Offer) -> Self {
        let quote = Quote {
            sound: offer.sound_price,
            max_output: offer.model.max_output,
            ..Quote::unknown(offer.price.unwrap_or_default())
        };
        Self { inner, purse: None, quote, traffic: Traffic::default() }
    }
}

impl<S> Service<UpstreamRequest> for Metered<S>
where
    S: Service<UpstreamRequest, Response = UpstreamResponse, Error = UpstreamError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        let Self { inner, purse, quote, traffic } = self.clone();
        if purse.is_none() && request.payer.is_none() {
            return Box::pin(inner.oneshot(request));
        }
        Box::pin(async move {
            let Priced { body, most, count } = priced(&request, &quote)?;
            // The key's own money first: what the provider's purse then refuses goes back to it.
            let payer = match &request.payer {
                Some(payer) => Some(payer.reserve(most).await?),
                None => None,
            };
            let provider = match &purse {
                Some(purse) => Some(purse.reserve(most).await?),
                None => None,
            };
            let reservations = [provider, payer];
            // What another node says of its answer may be anything; more than was set aside for it, no key pays.
            let at_most = if purse.is_some() { MicroUsd(u64::MAX) } else { most };
            let mut meter = Meter { reservations, at_most, count, asking: None };
            // Who goes away before the first word of an answer saves nothing: a whole one is made to its end, and a
            // stream's prompt is read.
            let left = if request.stream { meter.count.cost() } else { most };
            let egress = request.egress.of_attempt();
            meter.asking = Some((egress.clone(), left));
            let call = traffic.begin(Instant::now());
            let answer = inner.oneshot(UpstreamRequest { body, egress: egress.clone(), ..request }).await;
            meter.asking = None;
            match answer {
                Ok(UpstreamResponse { served_by, media, events }) => {
                    meter.count.answered(media.as_deref());
                    Ok(UpstreamResponse { served_by, media, events: meter.watch(events, call) })
                }
                Err(error) => {
                    // Who took it and said nothing may have answered all of it, and bills it; who refused does not.
                    if error.unanswered && egress.was_sent() {
                        meter.spent(most);
                    }
                    call.failed(&error);
                    Err(error)
                }
            }
        })
    }
}

/// A request with what is set aside for it.
struct Priced {
    body: Bytes,
    most: MicroUsd,
    count: Count,
}

fn priced(request: &UpstreamRequest, quote: &Quote) -> Result<Priced, UpstreamError> {
    if request.path.is_sound() {
        let work = sound::work(request.path, request.media.as_deref(), &request.body);
        let bill = Bill { tokens: quote.price, sound: quote.sound, work };
        let count = Count::Sound { bill, ear: Ear::new(None) };
        return Ok(Priced { body: request.body.clone(), most: bill.most(), count });
    }
    let Bounded { body, input, output, times } = bounded(request.path, &request.body, quote)?;
    let price = Price {
        input_per_million: MicroUsd(quote.price.input_per_million.0.saturating_mul(times)),
        output_per_million: MicroUsd(quote.price.output_per_million.0.saturating_mul(times)),
    };
    let prompt = Tokens(Tokens::from_len(body.len()).0 / BYTES_PER_TOKEN);
    let count = Count::Tokens { price, prompt, tap: Box::default(), streamed: request.stream };
    Ok(Priced { body, most: price.cost(input, output), count })
}

/// A request whose price has a bound.
struct Bounded {
    body: Bytes,
    input: Tokens,
    output: Tokens,
    /// Prices of the list that a token costs.
    times: u64,
}

#[derive(Deserialize)]
struct Limits<'a> {
    #[serde(borrow)]
    service_tier: Option<Text<'a>>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    n: Option<u32>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
}

impl Limits<'_> {
    /// Returns how many prompts the request has: each is answered. A list of numbers is one prompt, as tokens.
    fn prompts(&self) -> u32 {
        let list = self.prompt.and_then(|prompt| serde_json::from_str::<Vec<&RawValue>>(prompt.get()).ok());
        let is_prompt = |entry: &&RawValue| entry.get().starts_with(['"', '[']);
        let count = list.map_or(1, |list| list.into_iter().filter(is_prompt).count());
        u32::try_from(count).unwrap_or(u32::MAX).max(1)
    }
}

fn bounded(path: ApiPath, bytes: &Bytes, quote: &Quote) -> Result<Bounded, UpstreamError> {
    let refused =
        |_| UpstreamError::new(400, "invalid_request_error", "the limits of the request are no numbers");
    let limits: Limits<'_> = serde_json::from_slice(bytes).map_err(refused)?;
    let images = memmem::find_iter(bytes, b"\"image_url\"").count();
    let images = u32::try_from(images).unwrap_or(u32::MAX).saturating_mul(IMAGE_TOKENS);
    let asked = limits.max_tokens.max(limits.max_completion_tokens).map(Tokens);
    let longest = quote.max_output.unwrap_or(Tokens(u32::MAX));
    let generates = path != ApiPath::Embeddings;
    let parsed = Body::parse(bytes).map_err(refused)?;
    let mut edits: Vec<(&str, Edit)> = UNBOUND
        .into_iter()
        .filter(|name| parsed.raw(name).is_some())
        .map(|name| (name, Edit::Remove))
        .collect();
    if asked.is_none() && generates {
        edits.push(("max_tokens", Edit::Set(DEFAULT_OUTPUT.min(longest).to_string())));
    }
    let body = if edits.is_empty() { bytes.clone() } else { parsed.rebuild(&edits) };
    let prompts = if path == ApiPath::Completions { limits.prompts() } else { 1 };
    let n = if generates { limits.n.unwrap_or(1).clamp(1, MAX_N).saturating_mul(prompts) } else { 0 };
    let each = asked.unwrap_or(DEFAULT_OUTPUT).min(longest);
    let input = Tokens::from_len(body.len()) + Tokens(images);
    let times = if limits.service_tier.is_some_and(|tier| tier.0 == "priority") { PRIORITY } else { 1 };
    Ok(Bounded { body, input, output: Tokens(each.0.saturating_mul(n)), times })
}

/// What an answer is counted by as it passes.
enum Count {
    Tokens {
        price: Price,
        /// Tokens of the prompt as estimated here.
        prompt: Tokens,
        tap: Box<Tap>,
        streamed: bool,
    },
    Sound {
        bill: Bill,
        ear: Ear,
    },
}

impl Count {
    /// Notes of which media type the answer is.
    fn answered(&mut self, media: Option<&str>) {
        if let Self::Sound { ear, .. } = self {
            *ear = Ear::new(media);
        }
    }

    fn read(&mut self, payload: &Bytes) {
        match self {
            Self::Tokens { tap, streamed: true, .. } => {
                tap.inspect(payload);
            }
            Self::Tokens { tap, streamed: false, .. } => {
                tap.inspect_body(payload);
            }
            Self::Sound { ear, .. } => ear.hear(payload),
        }
    }

    fn end(&mut self) {
        if let Self::Sound { ear, .. } = self {
            ear.end();
        }
    }

    fn cost(&self) -> MicroUsd {
        let tokens = |n: u64| Tokens(u32::try_from(n).unwrap_or(u32::MAX));
        match self {
            Self::Tokens { price, prompt, tap, .. } => match tap.usage {
                // What the provider says that it bills counts for more than its list.
                Some(usage) => usage.billed.unwrap_or_else(|| {
                    price.cost(tokens(usage.billed_prompt_tokens()), tokens(usage.completion_tokens))
                }),
                None => price.cost(*prompt, tokens(tap.content_payloads)),
            },
            Self::Sound { bill, ear } => bill.settled(&ear.usage()),
        }
    }
}

/// Reads counts as an answer passes, and keeps the reservations told.
struct Meter {
    /// At the provider, and of the key that asks.
    reservations: [Option<Reservation>; 2],
    /// More is not booked, whatever the answer counts.
    at_most: MicroUsd,
    count: Count,
    /// While nobody answered yet: whether the request was sent, and what is booked if it is given up then.
    asking: Option<(EgressMark, MicroUsd)>,
}

impl Meter {
    fn watch(
        mut self,
        events: BoxStream<'static, Result<Event, UpstreamError>>,
        call: Call,
    ) -> BoxStream<'static, Result<Event, UpstreamError>> {
        self.book();
        stream::unfold(Some((self, events, call)), move |state| async move {
            let (mut meter, mut events, call) = state?;
            let event = events.next().await?;
            match &event {
                Ok(Event::Chunk(payload)) => {
                    meter.count.read(payload);
                    meter.book();
                    Some((event, Some((meter, events, call))))
                }
                // The meter goes, and settles, with the last event.
                Ok(Event::End { .. }) => {
                    meter.count.end();
                    meter.book();
                    call.answered(Instant::now());
                    Some((event, None))
                }
                Err(error) => {
                    call.failed(error);
                    Some((event, None))
                }
            }
        })
        .boxed()
    }

    fn book(&mut self) {
        self.spent(self.count.cost().min(self.at_most));
    }

    fn spent(&mut self, cost: MicroUsd) {
        self.reservations.iter_mut().flatten().for_each(|reservation| reservation.spent(cost));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some((egress, cost)) = self.asking.take()
            && egress.was_sent()
        {
            self.spent(cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quote(max_output: Option<u32>) -> Quote {
        Quote { max_output: max_output.map(Tokens), ..Quote::unknown(Price::default()) }
    }

    fn bound_of(text: &'static str, max_output: Option<u32>) -> (String, u32, u32) {
        let bounded =
            bounded(ApiPath::ChatCompletions, &Bytes::from_static(text.as_bytes()), &quote(max_output))
                .unwrap();
        (String::from_utf8(bounded.body.to_vec()).unwrap(), bounded.input.0, bounded.output.0)
    }

    #[test]
    fn an_answer_without_a_limit_is_given_one() {
        let (body, input, output) = bound_of(r#"{"model":"m"}"#, None);
        assert_eq!((body.as_str(), output), (r#"{"model":"m","max_tokens":8192}"#, 8192));
        assert_eq!(input as usize, body.len(), "a token is at least a byte");
        assert_eq!(bound_of(r#"{"model":"m"}"#, Some(100)).0, r#"{"model":"m","max_tokens":100}"#);
    }

    #[test]
    fn limits_answers_and_images_count() {
        let (body, _, output) = bound_of(r#"{"max_completion_tokens":7,"max_tokens":3,"n":2}"#, None);
        assert_eq!((body.as_str(), output), (r#"{"max_completion_tokens":7,"max_tokens":3,"n":2}"#, 14));
        assert_eq!(bound_of(r#"{"max_tokens":4000000000,"n":9}"#, Some(50)).2, 450);
        assert!(bound_of(r#"{"messages":[{"type":"image_url"}]}"#, None).1 > IMAGE_TOKENS);
    }

    #[test]
    fn every_prompt_of_a_list_is_answered() {
        for (prompt, answers) in
            [(r#""one""#, 1), (r#"["one","two","three"]"#, 3), ("[1,2,3]", 1), ("[[1,2],[3]]", 2), ("[]", 1)]
        {
            let text = format!(r#"{{"prompt":{prompt},"max_tokens":10,"n":2}}"#);
            let of = |path| bounded(path, &text.clone().into(), &quote(None)).unwrap().output.0;
            assert_eq!(of(ApiPath::Completions), 20 * answers, "{prompt}");
            assert_eq!(of(ApiPath::ChatCompletions), 20, "{prompt}");
        }
    }

    #[test]
    fn what_would_cost_without_a_bound_is_left_out() {
        let text = r#"{"model":"m","models":["dear"],"route":"fallback","plugins":[{"id":"web"}],"web_search_options":{},"best_of":20,"max_tokens":3}"#;
        assert_eq!(bound_of(text, None), (r#"{"model":"m","max_tokens":3}"#.into(), 28, 3));
    }
}
