//! Keeps responses for the callers who asked for them, and finds them again, here or on the node that keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use shoal_routing::DataClass;

use super::object::{INPUT, place_of};
use super::request::{Draft, Past};
use super::seal::Seal;
use super::voice::Keep;
use crate::api::auth::{Caller, credential};
use crate::api::chat_body::Object;
use crate::api::error::ApiError;
use crate::store::{KeptResponse, MAX_RESPONSE_BYTES, ResponseShelf};

/// Callers without a key of their own.
const KEYLESS: [&str; 2] = ["anonymous", "admin"];

/// A node that keeps a response does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

/// Asks other nodes for what they keep; which one is part of the id.
pub trait Elsewhere: Send + Sync {
    /// Returns what an owner keeps there, sealed.
    fn fetch<'a>(&'a self, id: &'a str, owner: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>, Away>>;

    /// Removes it; false if there was nothing.
    fn remove<'a>(&'a self, id: &'a str, owner: &'a str) -> BoxFuture<'a, Result<bool, Away>>;
}

/// Where a node's responses are kept and found; cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    shelf: Arc<ResponseShelf>,
    elsewhere: Arc<dyn Elsewhere>,
    /// For callers without a key.
    keyless: Seal,
}

/// A conversation with its last response.
#[derive(Debug, Deserialize)]
pub(super) struct Kept {
    /// All items that came before the response, earlier turns included.
    pub(super) input: Vec<Box<RawValue>>,
    /// The response.
    pub(super) response: Box<RawValue>,
    /// The class under which the request travelled.
    data_class: Option<String>,
}

impl Kept {
    /// Returns the class of the conversation. What does not say it, or not in a word known here, is restricted.
    fn data_class(&self) -> DataClass {
        self.data_class.as_deref().and_then(|word| word.parse().ok()).unwrap_or(DataClass::Restricted)
    }

    fn output(&self) -> Vec<Box<RawValue>> {
        #[derive(Deserialize)]
        struct Output {
            output: Vec<Box<RawValue>>,
        }
        serde_json::from_str::<Output>(self.response.get())
            .map(|response| response.output)
            .unwrap_or_default()
    }
}

/// Returns the first characters of the id of the node that keeps a response; `None` if the id is none of ours.
pub fn home_of(id: &str) -> Option<&str> {
    let (home, rest) = id.strip_prefix("resp_")?.split_once('_')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
    (home.len() == 8 && rest.len() == 32 && plain(home) && plain(rest)).then_some(home)
}

impl Keeper {
    /// Makes the keeper of one node.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(shelf: Arc<ResponseShelf>, elsewhere: Arc<dyn Elsewhere>) -> anyhow::Result<Self> {
        let keyless =
            Seal::of_this_run().ok_or_else(|| anyhow::anyhow!("the system gives no random bytes"))?;
        Ok(Self { shelf, elsewhere, keyless })
    }

    /// Returns what keeps one response of a caller, with the input that it answers.
    pub(super) fn keep(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        id: String,
        input: Box<RawValue>,
    ) -> Keep {
        let (shelf, seal, owner) =
            (self.shelf.clone(), self.seal(caller, headers), caller.key_id.to_string());
        Box::new(move |response, data_class| {
            if input.get().len() + response.get().len() > MAX_RESPONSE_BYTES {
                return false;
            }
            let mut kept = Object::default();
            kept.put("input", &input).put("response", response).put("data_class", data_class.as_str());
            let Some(sealed) = seal.close(&id, kept.finish().to_vec()) else { return false };
            shelf.put(KeptResponse { id, owner, sealed })
        })
    }

    /// Finds all that a request goes on from.
    ///
    /// # Errors
    /// It goes on from a response that is kept nowhere, or by a node that is away.
    pub(super) async fn recall(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        me: &str,
        draft: &Draft<'_>,
    ) -> Result<Past, ApiError> {
        let mut past = Past::default();
        if let Some(id) = &draft.previous {
            let kept = self.find(caller, headers, me, id).await.map_err(|error| ApiError {
                param: Some("previous_response_id".into()),
                code: if error.status == 404 {
                    "previous_response_not_found".into()
                } else {
                    error.code.clone()
                },
                ..error
            })?;
            let output = kept.output();
            past.data_class = past.data_class.raised_to(kept.data_class());
            past.items = kept.input;
            past.items.extend(output);
        }
        let mut places: BTreeMap<String, Vec<(&String, usize)>> = BTreeMap::new();
        for reference in &draft.references {
            if let Some((id, place)) = place_of(reference) {
                places.entry(id).or_default().push((reference, place));
            }
        }
        for (id, references) in places {
            // One that is missing is told with its place, when the request is translated.
            let Ok(kept) = self.find(caller, headers, me, &id).await else { continue };
            let output = kept.output();
            for (reference, place) in references {
                let items = if reference.starts_with(INPUT) { &kept.input } else { &output };
                if let Some(item) = items.get(place) {
                    past.data_class = past.data_class.raised_to(kept.data_class());
                    past.referred.insert(reference.clone(), item.clone());
                }
            }
        }
        Ok(past)
    }

    /// Finds a response of a caller, here or on the node that keeps it.
    ///
    /// # Errors
    /// 404 where it is kept nowhere, 503 where the node that keeps it is away.
    pub(super) async fn find(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        me: &str,
        id: &str,
    ) -> Result<Kept, ApiError> {
        let home = home_of(id).ok_or_else(|| unknown(id))?;
        let owner = &*caller.key_id;
        let sealed = if home == me {
            let (shelf, id, owner) = (self.shelf.clone(), id.to_owned(), owner.to_owned());
            blocking(move || shelf.find(&id, &owner)).await?
        } else {
            self.elsewhere.fetch(id, owner).await.map_err(|Away| away(home))?
        };
        let opened = sealed.and_then(|sealed| self.seal(caller, headers).open(id, sealed));
        opened.and_then(|json| serde_json::from_slice(&json).ok()).ok_or_else(|| unknown(id))
    }

    /// Removes a response of a caller, here or on the node that keeps it.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub(super) async fn remove(&self, caller: &Caller, me: &str, id: &str) -> Result<(), ApiError> {
        let home = home_of(id).ok_or_else(|| unknown(id))?;
        let owner = &*caller.key_id;
        let found = if home == me {
            let (shelf, id, owner) = (self.shelf.clone(), id.to_owned(), owner.to_owned());
            blocking(move || shelf.remove(&id, &owner)).await?
        } else {
            self.elsewhere.remove(id, owner).await.map_err(|Away| away(home))?
        };
        if found { Ok(()) } else { Err(unknown(id)) }
    }

    fn seal(&self, caller: &Caller, headers: &HeaderMap) -> Seal {
        match credential(headers).filter(|_| !KEYLESS.contains(&&*caller.key_id)) {
            Some(key) => Seal::new(key.as_bytes()),
            None => self.keyless.clone(),
        }
    }
}

fn unknown(id: &str) -> ApiError {
    let shown: String = id.chars().filter(|c| c.is_ascii_graphic()).take(96).collect();
    let message = format!(
        "no response '{shown}' is kept for this key: it was not stored, was deleted, is too old, or belongs to another key; send the conversation as 'input'"
    );
    ApiError::new(404, "not_found", message)
}

fn away(home: &str) -> ApiError {
    let message = format!(
        "the node {home} keeps this response and does not answer now; try again when it is back, or send the conversation as 'input'"
    );
    ApiError::new(503, "node_away", message).after(std::time::Duration::from_secs(1))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::store::Error> + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |message: String| ApiError::new(500, "store_failed", message);
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| failed(e.to_string()))?
        .map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_say_its_class_is_restricted() {
        for (class, expected) in [
            ("", DataClass::Restricted),
            (r#","data_class":"secret""#, DataClass::Restricted),
            (r#","data_class":"public""#, DataClass::Public),
            (r#","data_class":"internal""#, DataClass::Internal),
        ] {
            let json = format!(r#"{{"input":[],"response":{{}}{class}}}"#);
            let kept: Kept = serde_json::from_str(&json).unwrap();
            assert_eq!(kept.data_class(), expected, "{class}");
        }
    }

    #[test]
    fn only_an_id_of_ours_has_a_home() {
        let id = format!("resp_ab12cd34_{}", "0".repeat(32));
        assert_eq!(home_of(&id), Some("ab12cd34"));
        for bad in [
            "",
            "resp_1",
            "resp_ab12cd34_",
            "resp_ab12cd34_../../../../../../../../../../x",
            "req_ab12cd34_0",
        ] {
            assert_eq!(home_of(bad), None, "{bad}");
        }
    }
}
