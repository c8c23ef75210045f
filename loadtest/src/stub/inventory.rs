//! Listings and health paths, in the manner of the server that the stub imitates.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{Kind, Shared, error, infer};

pub(super) fn router(kind: Kind) -> Router<Arc<Shared>> {
    let common = Router::new().route("/v1/models", get(models)).route("/v1/models/{*id}", get(model));
    match kind {
        Kind::Openai | Kind::Azure | Kind::Anthropic | Kind::Gemini => common,
        Kind::Ollama => common
            .route("/", get(|| async { "Ollama is running" }))
            .route("/api/version", get(|| async { Json(json!({"version": "0.13.0"})) }))
            .route("/api/tags", get(ollama_models))
            .route("/api/ps", get(ollama_models))
            .route("/api/chat", post(infer::ollama_chat))
            .route("/api/show", post(ollama_show)),
        Kind::LlamaCpp => common
            .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
            .route("/props", get(llama_props))
            .route("/slots", get(llama_slots)),
        Kind::Vllm => common
            .route("/health", get(|| async { StatusCode::OK }))
            .route("/version", get(|| async { Json(json!({"version": "0.11.0"})) }))
            .route("/metrics", get(vllm_metrics)),
        Kind::Sglang => common
            .route("/health", get(|| async { StatusCode::OK }))
            .route("/get_model_info", get(sglang_model))
            .route("/get_server_info", get(sglang_server))
            .route("/metrics", get(sglang_metrics)),
        Kind::Lmstudio => common.route("/api/v0/models", get(lmstudio_models)),
        Kind::LfoHttp | Kind::LfoTcp => Router::new(),
    }
}

fn describe(shared: &Shared, id: &str) -> Value {
    let owner = match shared.options.kind {
        Kind::Openai | Kind::Azure | Kind::Anthropic | Kind::Gemini => "stub",
        Kind::Ollama => "library",
        Kind::LlamaCpp => "llamacpp",
        Kind::Vllm => "vllm",
        Kind::Sglang => "sglang",
        Kind::Lmstudio => "organization_owner",
        Kind::LfoHttp | Kind::LfoTcp => "lfo",
    };
    let mut model = json!({"id": id, "object": "model", "created": shared.started_unix, "owned_by": owner});
    if let Some(digest) = &shared.options.digest {
        model["digest"] = digest.as_str().into();
    }
    match shared.options.kind {
        Kind::Vllm | Kind::Sglang => model["max_model_len"] = shared.options.context.into(),
        Kind::LlamaCpp => model["meta"] = json!({"n_ctx_train": shared.options.context, "n_vocab": 49152}),
        Kind::Openai
        | Kind::Azure
        | Kind::Anthropic
        | Kind::Gemini
        | Kind::Ollama
        | Kind::Lmstudio
        | Kind::LfoHttp
        | Kind::LfoTcp => {}
    }
    model
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let data: Vec<Value> = shared.options.models.iter().map(|id| describe(&shared, id)).collect();
    Json(json!({"object": "list", "data": data})).into_response()
}

async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    if shared.options.models.contains(&id) {
        return Json(describe(&shared, &id)).into_response();
    }
    let message = format!("The model '{id}' does not exist.");
    error(StatusCode::NOT_FOUND, &message, "model_not_found", Some("model"))
}

async fn ollama_models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let models: Vec<Value> = shared
        .options
        .models
        .iter()
        .map(|id| json!({"name": id, "model": id, "size": 1_000_000, "digest": "stub",
            "details": {"format": "gguf", "family": "stub", "parameter_size": "1B", "quantization_level": "Q4_0"}}))
        .collect();
    Json(json!({"models": models}))
}

async fn ollama_show(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"details": {"format": "gguf", "family": "stub"}, "capabilities": ["completion", "tools"],
        "model_info": {"general.architecture": "stub", "stub.context_length": shared.options.context}}))
}

async fn llama_props(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"default_generation_settings": {"n_ctx": shared.options.context},
        "total_slots": shared.options.slots, "model_path": shared.options.models.first(),
        "chat_template": "", "chat_template_caps": {"supports_tools": true}, "build_info": "stub"}))
}

async fn llama_slots(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let free = shared.slots.available_permits();
    let slots: Vec<Value> = (0..shared.options.slots)
        .map(|id| json!({"id": id, "n_ctx": shared.options.context, "is_processing": id >= free}))
        .collect();
    Json(slots.into())
}

/// The lines of vLLM's metrics that tell its load.
async fn vllm_metrics(State(shared): State<Arc<Shared>>) -> String {
    let running = shared.options.slots.saturating_sub(shared.slots.available_permits());
    let share = running as f64 / shared.options.slots.max(1) as f64;
    let waiting = shared.log.snapshot().counts.open.saturating_sub(running as u64);
    format!(
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{engine=\"0\"}} {running}.0\n\
         vllm:num_requests_waiting{{engine=\"0\"}} {waiting}.0\nvllm:kv_cache_usage_perc{{engine=\"0\"}} {share}\n"
    )
}

/// It serves one model; what the name says tells whether that makes vectors.
async fn sglang_model(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let model = shared.options.models.first().cloned().unwrap_or_default();
    Json(json!({"model_path": model, "tokenizer_path": model, "is_generation": !model.contains("embed"),
        "preferred_sampling_params": null, "has_image_understanding": model.contains("vl"),
        "has_audio_understanding": false}))
}

async fn sglang_server(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"model_path": shared.options.models.first(), "context_length": shared.options.context,
        "max_running_requests": shared.options.slots, "version": "0.5.6", "internal_states": []}))
}

/// The lines of SGLang's metrics that tell its load.
async fn sglang_metrics(State(shared): State<Arc<Shared>>) -> String {
    let model = shared.options.models.first().map_or("", String::as_str);
    let running = shared.options.slots.saturating_sub(shared.slots.available_permits());
    let share = running as f64 / shared.options.slots.max(1) as f64;
    let waiting = shared.log.snapshot().counts.open.saturating_sub(running as u64);
    format!(
        "# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{{model_name=\"{model}\"}} {running}.0\n\
         sglang:num_queue_reqs{{model_name=\"{model}\"}} {waiting}.0\n\
         sglang:token_usage{{model_name=\"{model}\"}} {share}\n"
    )
}

async fn lmstudio_models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let data: Vec<Value> = shared
        .options
        .models
        .iter()
        .map(|id| {
            json!({"id": id, "object": "model", "type": "llm", "state": "loaded",
            "max_context_length": shared.options.context})
        })
        .collect();
    Json(json!({"object": "list", "data": data}))
}
