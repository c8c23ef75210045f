//! `/v1/embeddings` of an engine in this process, for models that were made for it.

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::parse::{invalid, unsupported};
use super::{Generator, InProcess, died, late, map};
use crate::upstream::{Event, UpstreamError, UpstreamRequest, UpstreamResponse};

/// Most texts of a request, as in the OpenAI API.
const MAX_INPUTS: usize = 2_048;

#[derive(Deserialize)]
struct Body {
    input: Input,
    dimensions: Option<usize>,
    encoding_format: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

struct Asked {
    texts: Vec<String>,
    dimensions: Option<usize>,
    base64: bool,
}

fn read(body: &[u8]) -> Result<Asked, UpstreamError> {
    let body: Body = serde_json::from_slice(body)
        .map_err(|_| invalid("'input' must be a text or a list of texts, 'dimensions' a number"))?;
    let texts = match body.input {
        Input::One(text) => vec![text],
        Input::Many(texts) => texts,
    };
    if texts.is_empty() || texts.len() > MAX_INPUTS || texts.iter().any(String::is_empty) {
        return Err(invalid(format!("'input' takes 1 to {MAX_INPUTS} texts, none of them empty")));
    }
    if body.dimensions == Some(0) {
        return Err(invalid("'dimensions' must be at least 1"));
    }
    let base64 = match body.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(invalid("'encoding_format' must be float or base64")),
    };
    Ok(Asked { texts, dimensions: body.dimensions, base64 })
}

impl<G: Generator> InProcess<G> {
    /// Answers a request for vectors as a whole.
    pub(super) async fn embeddings(
        self,
        request: UpstreamRequest,
    ) -> Result<UpstreamResponse, UpstreamError> {
        if self.model.embeddings != Some(true) {
            let message = "the model of the embedded engine makes no embeddings";
            return Err(UpstreamError::retryable(501, "unsupported", message));
        }
        let asked = read(&request.body)?;
        let slot = self.slot().await?;
        let served_by = self.served_by();
        let (alive, gone) = tokio::sync::oneshot::channel::<()>();
        let deadline = request.deadline;
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            let stop = || alive.is_closed() || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            self.vectors(&asked, &stop)
        });
        let body = work.await.map_err(|_| died())??;
        // Dropped with this future, which tells the work that nobody waits.
        drop(gone);
        let events = [Ok(Event::Chunk(body)), Ok(Event::End { complete: true })];
        Ok(UpstreamResponse { served_by, media: None, events: stream::iter(events).boxed() })
    }

    fn vectors(&self, asked: &Asked, stop: &dyn Fn() -> bool) -> Result<Bytes, UpstreamError> {
        let (mut data, mut tokens) = (Vec::new(), 0);
        for (index, text) in asked.texts.iter().enumerate() {
            let Some((vector, count)) = self.generator.embed(text, stop).map_err(map)? else {
                return Err(late());
            };
            tokens += count;
            let vector = shortened(vector, asked.dimensions)?;
            let embedding = match asked.base64 {
                true => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    Value::from(BASE64.encode(&bytes))
                }
                false => json!(vector),
            };
            data.push(json!({ "object": "embedding", "index": index, "embedding": embedding }));
        }
        let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
        let body = json!({ "object": "list", "data": data, "model": self.model.id, "usage": usage });
        Ok(Bytes::from(body.to_string()))
    }
}

/// Cuts a vector and makes its length 1 again, as models with nested dimensions are meant to be cut.
fn shortened(mut vector: Vec<f32>, dimensions: Option<usize>) -> Result<Vec<f32>, UpstreamError> {
    let Some(dimensions) = dimensions.filter(|dimensions| *dimensions != vector.len()) else {
        return Ok(vector);
    };
    if dimensions > vector.len() {
        return Err(unsupported(&format!("'dimensions' above {}", vector.len())));
    }
    vector.truncate(dimensions);
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
    Ok(vector)
}
