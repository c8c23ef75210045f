//! What a body asks for becomes a request, under what its headers, its key and earlier hops demand.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use shoal_routing::{
    DataClass, Message, Mode, ModelChoice, Needs, Request, RequestProfile, SoundWork, Tokens,
};

use super::super::error::ApiError;
use super::metadata::Metadata;
use super::{Floor, Naming, Parsed, Shape};
use crate::upstream::ApiPath;
use crate::upstream::openai_http::HOPS;

/// Headers in which the SDKs of OpenAI and Anthropic say how many seconds they wait.
const TIME_LIMITS: [&str; 2] = ["x-stainless-timeout", "x-stainless-read-timeout"];

/// Most meshes that a request may come through before this one.
const MAX_MESHES: u32 = 3;

/// What was read of a body, in JSON or a form.
pub(super) struct Asked<'a> {
    pub(super) path: ApiPath,
    pub(super) model: String,
    /// Text that the rules and the profile may look at.
    pub(super) messages: Vec<Message<'a>>,
    pub(super) needs: Needs,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) max_output: Option<Tokens>,
    pub(super) answers: u64,
    pub(super) session: Option<u64>,
    pub(super) user: Option<String>,
    pub(super) metadata: Metadata,
    pub(super) body: Bytes,
    pub(super) media: Option<Arc<str>>,
    pub(super) work: Option<SoundWork>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Asked<'a> {
    /// Makes the request of it, under what headers, key and earlier hops demand.
    ///
    /// # Errors
    /// What is wrong with a header.
    pub(super) fn under(
        self,
        headers: &HeaderMap,
        floor: Floor,
        naming: Naming<'_>,
    ) -> Result<(Parsed, Request<'a>), ApiError> {
        let Self { path, model, metadata, stream, include_usage, user, body, media, work, warnings, .. } =
            self;
        let choice = naming.choice(&model);
        let is_local = floor.local_only || choice == ModelChoice::AutoLocal;
        let class = data_class(&metadata, headers, floor)?;
        let mut shape = Shape {
            stream,
            mode: if is_local { Mode::Local } else { metadata.mode },
            preference: metadata.preference,
            data_class: if floor.local_only { DataClass::Restricted } else { class },
            needs: self.needs,
            max_output: self.max_output,
            answers: self.answers,
            confidence_threshold: metadata.threshold,
            resume: metadata.resume,
            chooses: choice.is_auto(),
            meshes: meshes(headers)?,
            session: self.session,
        };
        let request = Request {
            messages: self.messages,
            max_output: shape.max_output,
            needs: shape.needs,
            stream,
            choice,
            mode: shape.mode,
            preference: shape.preference,
            data_class: shape.data_class,
            hop: 0,
            max_local_tokens: None,
            time_limit: time_limit(headers),
            budget_left: None,
            session: shape.session,
        };
        // `auto:cheap` says as much as the field does, also to who judges the answer.
        shape.preference = request.effective_preference();
        // Half a kilobyte that would otherwise be moved through every future of the request.
        let profile = Box::new(RequestProfile::of(&request));
        Ok((
            Parsed { path, model, profile, shape, body, media, work, include_usage, user, warnings },
            request,
        ))
    }
}

fn data_class(metadata: &Metadata, headers: &HeaderMap, floor: Floor) -> Result<DataClass, ApiError> {
    let mut class = floor.data_class.max(metadata.data_class.unwrap_or(floor.data_class));
    // Header, metadata, key and earlier hops can each only raise it; so can each of several headers.
    for value in headers.get_all("x-shoal-data-class") {
        let asked = value.to_str().ok().and_then(|v| v.parse::<DataClass>().ok()).ok_or_else(|| {
            ApiError::invalid(
                "x-shoal-data-class",
                "the header 'x-shoal-data-class' must be public, internal or restricted",
            )
        })?;
        class = class.max(asked);
    }
    Ok(class)
}

/// Returns how many meshes a request came through.
///
/// # Errors
/// 508 above [`MAX_MESHES`]: two routers that have each other as a provider would ask in a circle.
fn meshes(headers: &HeaderMap) -> Result<u32, ApiError> {
    let Some(value) = headers.get(HOPS) else { return Ok(0) };
    let count: Option<u32> = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let count =
        count.ok_or_else(|| ApiError::invalid(HOPS, format!("the header '{HOPS}' must be a number")))?;
    if count > MAX_MESHES {
        let message =
            "the request came through too many routers; probably two of them are each other's provider";
        return Err(ApiError::new(508, "too_many_hops", message));
    }
    Ok(count)
}

/// Returns how long the caller waits; what makes no sense as a time is no limit, since it only informs a guess.
fn time_limit(headers: &HeaderMap) -> Option<Duration> {
    let seconds = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    TIME_LIMITS
        .into_iter()
        .filter_map(seconds)
        .filter(|seconds| *seconds > 0.0)
        .filter_map(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .min()
}
