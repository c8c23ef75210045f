//! `/v1/models` as Anthropic's clients read it: they say so by the header `anthropic-version`.

use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Most models of one page, as at Anthropic.
const MAX_PAGE: usize = 1000;

/// Which part of the list is asked for.
#[derive(Debug, Default, Deserialize)]
pub(in super::super) struct Page {
    limit: Option<usize>,
    after_id: Option<String>,
    before_id: Option<String>,
}

/// Tells whether a request comes from one of Anthropic's clients.
pub(in super::super) fn is_wanted(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

/// Returns a page of the list; `models` are the entries of OpenAI's.
pub(in super::super) fn list(models: &[Value], page: &Page) -> Value {
    let limit = page.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
    let place =
        |id: &Option<String>| id.as_ref().and_then(|id| models.iter().position(|m| m["id"] == id.as_str()));
    let (mut from, mut to) = (place(&page.after_id).map_or(0, |at| at + 1), models.len());
    let mut has_more = to - from > limit;
    if let Some(before) = place(&page.before_id) {
        to = before;
        from = to.saturating_sub(limit);
        has_more = from > 0;
    }
    let data: Vec<Value> = models[from..to].iter().take(limit).map(entry).collect();
    let id = |entry: Option<&Value>| entry.map_or(Value::Null, |entry| entry["id"].clone());
    json!({"has_more": has_more, "first_id": id(data.first()), "last_id": id(data.last()), "data": data})
}

/// Returns one model; `model` is its entry in OpenAI's list.
pub(in super::super) fn entry(model: &Value) -> Value {
    let created = model["created"].as_i64().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let created =
        created.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "1970-01-01T00:00:00Z".into());
    json!({
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": created,
        "lifecycle": "active",
        "max_input_tokens": model["shoal"]["context_length"],
        "shoal": model["shoal"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> Vec<Value> {
        let model = |id: &str| json!({"id": id, "created": 86_400, "shoal": {"context_length": 8192}});
        ["a", "b", "c"].map(model).to_vec()
    }

    fn page(limit: usize, after: Option<&str>, before: Option<&str>) -> (Vec<String>, bool) {
        let page = Page {
            limit: Some(limit),
            after_id: after.map(str::to_owned),
            before_id: before.map(str::to_owned),
        };
        let list = list(&models(), &page);
        let ids = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned());
        (ids.collect(), list["has_more"] == true)
    }

    #[test]
    fn an_entry_has_what_their_clients_read() {
        assert_eq!(
            entry(&models()[0]),
            json!({"type": "model", "id": "a", "display_name": "a", "created_at": "1970-01-02T00:00:00Z",
                   "lifecycle": "active", "max_input_tokens": 8192, "shoal": {"context_length": 8192}})
        );
    }

    #[test]
    fn pages_follow_and_precede() {
        let ids = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        assert_eq!(page(2, None, None), (ids("ab"), true));
        assert_eq!(page(2, Some("b"), None), (ids("c"), false));
        assert_eq!(page(3, None, None), (ids("abc"), false));
        assert_eq!(page(1, None, Some("c")), (ids("b"), true));
        assert_eq!(page(2, None, Some("c")), (ids("ab"), false));
        assert_eq!(page(0, Some("unknown"), None), (ids("a"), true));
        assert_eq!(list(&[], &Page::default())["first_id"], Value::Null);
    }
}
