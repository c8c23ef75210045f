//! What was kept, shown to whom it is kept for: a response, its input, and how it is deleted.

use axum::Json;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::object::INPUT;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::front::Front;

/// Most items of one page.
const MAX_ITEMS: usize = 100;
/// Items of a page where nothing else was asked for.
const USUAL_ITEMS: usize = 20;

#[derive(Deserialize)]
pub(super) struct Retrieve {
    stream: Option<String>,
}

/// `GET /v1/responses/{id}`
pub(super) async fn retrieve(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<Retrieve>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if query.stream.as_deref() == Some("true") {
        let message = "a response that has ended is not streamed again; leave 'stream' out";
        return Err(ApiError { param: Some("stream".into()), ..ApiError::new(400, "unsupported", message) });
    }
    let kept = front.responses.find(&caller, &headers, &front.short_id, &id).await?;
    let mut response = String::from(Box::<str>::from(kept.response)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// `DELETE /v1/responses/{id}`
pub(super) async fn delete(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    front.responses.remove(&caller, &front.short_id, &id).await?;
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// `POST /v1/responses/{id}/cancel`: only answers in the background could be, and none are given.
pub(super) async fn cancel() -> ApiError {
    ApiError::new(
        400,
        "unsupported",
        "no answers are given in the background; close the connection to cancel one",
    )
}

#[derive(Deserialize)]
pub(super) struct Page {
    limit: Option<usize>,
    order: Option<String>,
    after: Option<String>,
}

/// `GET /v1/responses/{id}/input_items`: newest first unless asked otherwise.
pub(super) async fn input_items(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(page): Query<Page>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let kept = front.responses.find(&caller, &headers, &front.short_id, &id).await?;
    let items = kept.input.iter().enumerate().map(|(place, raw)| named(&id, place, raw.get())).collect();
    Ok(Json(page.of(items)?))
}

/// Returns an item with an id: what a client sent has none.
fn named(response: &str, place: usize, json: &str) -> Value {
    let mut item: Value = serde_json::from_str(json).unwrap_or_default();
    if let Some(fields) = item.as_object_mut() {
        let suffix = response.strip_prefix("resp_").unwrap_or(response);
        fields.entry("type").or_insert_with(|| "message".into());
        fields.entry("id").or_insert_with(|| format!("{INPUT}{suffix}_{place}").into());
    }
    item
}

impl Page {
    fn of(&self, mut items: Vec<Value>) -> Result<Value, ApiError> {
        match self.order.as_deref() {
            None | Some("desc") => items.reverse(),
            Some("asc") => {}
            Some(_) => return Err(ApiError::invalid("order", "'order' must be asc or desc")),
        }
        if let Some(after) = &self.after {
            let place = items.iter().position(|item| item["id"] == after.as_str());
            let place = place.ok_or_else(|| {
                ApiError::invalid("after", "no item of this response has the id in 'after'")
            })?;
            items.drain(..=place);
        }
        let limit = self.limit.unwrap_or(USUAL_ITEMS).clamp(1, MAX_ITEMS);
        let has_more = items.len() > limit;
        items.truncate(limit);
        let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
        let (first, last) = (id(items.first()), id(items.last()));
        Ok(json!({"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(page: &Page) -> (Vec<String>, bool) {
        let items = (0..3).map(|place| named("resp_r", place, r#"{"role":"user","content":"x"}"#)).collect();
        let list = page.of(items).unwrap();
        let ids = list["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned());
        (ids.collect(), list["has_more"].as_bool().unwrap())
    }

    #[test]
    fn pages_follow_each_other() {
        let page = |limit, order: &str, after: Option<&str>| Page {
            limit,
            order: Some(order.into()),
            after: after.map(str::to_owned),
        };
        let name = |place: usize| format!("in_r_{place}");
        assert_eq!(ids(&page(Some(2), "desc", None)), (vec![name(2), name(1)], true));
        assert_eq!(ids(&page(Some(2), "desc", Some("in_r_1"))), (vec![name(0)], false));
        assert_eq!(ids(&page(None, "asc", None)).0, [name(0), name(1), name(2)]);
        assert!(page(None, "asc", Some("other")).of(Vec::new()).is_err());
        assert!(page(None, "sideways", None).of(Vec::new()).is_err());
    }
}
