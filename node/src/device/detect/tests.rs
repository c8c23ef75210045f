//! Faithful fakes of each engine's answers, and who is recognised in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use serde_json::json;

use super::*;
use crate::device::testing;
use crate::upstream::http_client::{self, Reach};

/// Asks without the probe's time limit: a busy machine must not decide what is recognised.
async fn probe_at(base: &Url, cache: &mut Cache) -> Result<Found, ProbeError> {
    let client = http_client::build(Reach::Lan).unwrap();
    let asking = Asker { client: &client, base, key: None }.identify(cache);
    tokio::time::timeout(testing::PATIENCE, asking).await.expect("the server answers")
}

/// Probes a server that answers GETs on the given paths with JSON, and all else with 404.
async fn probe_fake(answers: &[(&'static str, Value)]) -> Result<Found, ProbeError> {
    let mut router = Router::new();
    for (path, answer) in answers.iter().cloned() {
        router = router.route(path, get(move || async move { axum::Json(answer) }));
    }
    probe_at(&testing::serve(router).await, &mut Cache::default()).await
}

fn list(models: Value) -> Value {
    json!({ "object": "list", "data": models })
}

fn ollama(shows: Arc<AtomicUsize>) -> Router {
    let tags = json!({ "models": [
        { "name": "llama3.2:1b", "model": "llama3.2:1b", "size": 1_321_098_329u64, "digest": "baf6a787fdff",
          "details": { "family": "llama", "parameter_size": "1.2B", "quantization_level": "Q8_0" } },
        { "name": "gpt-oss:120b-cloud", "model": "gpt-oss:120b-cloud", "size": 384, "digest": "569662207105",
          "remote_model": "gpt-oss:120b", "remote_host": "https://ollama.com:443", "details": {} },
        { "name": "mine:latest", "model": "mine:latest", "size": 384, "digest": "0123", "details": {} },
        { "name": "nomic-embed-text:latest", "model": "nomic-embed-text:latest", "size": 274_302_450,
          "digest": "0a109f422b47", "details": { "quantization_level": "F16" } },
    ]});
    let show = move |axum::Json(asked): axum::Json<Value>| async move {
        shows.fetch_add(1, Ordering::SeqCst);
        let answer = match asked["model"].as_str().unwrap() {
            "llama3.2:1b" => json!({ "license": "long", "capabilities": ["completion", "tools"],
                "parameters": "stop \"<|eot_id|>\"\nnum_ctx                        16384",
                "model_info": { "general.architecture": "llama", "llama.context_length": 131_072 } }),
            "gpt-oss:120b-cloud" => json!({ "remote_host": "https://ollama.com:443",
                "capabilities": ["completion"], "model_info": { "gptoss.context_length": 131_072 } }),
            "mine:latest" => {
                json!({ "remote_host": "https://elsewhere.example", "capabilities": ["completion"] })
            }
            _ => {
                json!({ "capabilities": ["embedding"], "model_info": { "nomic-bert.context_length": 2048 } })
            }
        };
        axum::Json(answer)
    };
    let models = list(json!([{ "id": "llama3.2:1b", "object": "model", "owned_by": "library" }]));
    Router::new()
        .route("/api/version", get(|| async { axum::Json(json!({ "version": "0.13.1" })) }))
        .route("/api/tags", get(move || async move { axum::Json(tags) }))
        .route("/api/show", post(show))
        .route(
            "/api/ps",
            get(|| async { axum::Json(json!({ "models": [{ "model": "nomic-embed-text:latest" }] })) }),
        )
        .route("/v1/models", get(move || async move { axum::Json(models) }))
        .fallback(any(|| async { (StatusCode::NOT_FOUND, "404 page not found") }))
}

#[tokio::test]
async fn ollama_is_recognised_with_contexts_abilities_and_remote_models() {
    let found = probe_at(&testing::serve(ollama(Arc::default())).await, &mut Cache::default()).await.unwrap();
    assert_eq!((found.kind, found.slots), (EngineKind::Ollama, 1));
    let names: Vec<_> = found.models.iter().map(|model| &*model.id).collect();
    assert_eq!(names, ["gpt-oss:120b-cloud", "llama3.2:1b", "mine:latest", "nomic-embed-text:latest"]);
    let [cloud, llama, mine, nomic] = &found.models[..] else { panic!("four models") };
    assert!(cloud.remote && mine.remote, "a remote host in either answer counts");
    assert!(!llama.remote && !nomic.remote);
    assert_eq!((llama.context_length, nomic.context_length), (16384, 2048));
    assert_eq!([cloud.resident, llama.resident, nomic.resident], [None, Some(false), Some(true)]);
    assert_eq!((llama.tools, llama.logprobs, llama.embeddings), (Some(true), Some(true), None));
    assert_eq!(
        (llama.vision, llama.audio),
        (Some(false), Some(false)),
        "what Ollama does not name it refuses"
    );
    assert_eq!((nomic.embeddings, nomic.tools), (Some(true), Some(false)));
    assert_eq!(
        (&*llama.quantization, llama.size_bytes, &*llama.digest),
        ("Q8_0", 1_321_098_329, "baf6a787fdff")
    );
}

#[tokio::test]
async fn details_of_known_models_are_not_asked_again() {
    let shows = Arc::new(AtomicUsize::new(0));
    let base = testing::serve(ollama(shows.clone())).await;
    let mut cache = Cache::default();
    let first = probe_at(&base, &mut cache).await.unwrap();
    assert_eq!(shows.load(Ordering::SeqCst), 4);
    assert_eq!(probe_at(&base, &mut cache).await.unwrap(), first);
    assert_eq!(shows.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn llama_cpp_is_recognised_by_its_props() {
    let found = probe_fake(&[
        ("/v1/models", json!({ "object": "list", "models": [{ "name": "m" }], "data": [
            { "id": "/models/Qwen2.5-7B-Instruct-Q4_K_M.gguf", "object": "model", "owned_by": "llamacpp",
              "meta": { "n_ctx_train": 32768, "size": 4_677_120_000u64 } }] })),
        ("/props", json!({ "default_generation_settings": { "id": 0, "n_ctx": 8192 }, "total_slots": 4,
            "model_path": "/models/Qwen2.5-7B-Instruct-Q4_K_M.gguf", "modalities": { "vision": true, "audio": false },
            "chat_template": "{% if tools %}...{% endif %}", "build_info": "b6000" })),
        // It imitates Ollama for editors.
        ("/api/tags", json!({ "models": [{ "name": "x", "model": "x" }] })),
        ("/api/version", json!({ "version": "0.0.0" })),
    ])
    .await
    .unwrap();
    assert_eq!((found.kind, found.slots), (EngineKind::LlamaCpp, 4));
    let model = &found.models[0];
    assert_eq!((&*model.id, model.context_length), ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", 8192));
    assert_eq!((&*model.quantization, model.size_bytes), ("Q4_K_M", 4_677_120_000));
    assert_eq!((model.tools, model.vision, model.logprobs), (Some(true), Some(true), Some(true)));
    assert_eq!((model.audio, model.embeddings), (Some(false), None));
}

#[tokio::test]
async fn lm_studio_is_recognised_by_its_own_list() {
    let found = probe_fake(&[
        (
            "/v1/models",
            list(json!([{ "id": "qwen2-vl", "object": "model", "owned_by": "organization_owner" }])),
        ),
        (
            "/api/v0/models",
            list(json!([
            { "id": "qwen2-vl", "object": "model", "type": "vlm", "arch": "qwen2_vl", "quantization": "4bit",
              "state": "loaded", "max_context_length": 32768, "loaded_context_length": 8192 },
            { "id": "nomic", "object": "model", "type": "embeddings", "quantization": "Q4_0",
              "state": "not-loaded", "max_context_length": 2048, "capabilities": ["tool_use"] }])),
        ),
    ])
    .await
    .unwrap();
    assert_eq!(found.kind, EngineKind::LmStudio);
    let [nomic, qwen] = &found.models[..] else { panic!("two models") };
    assert_eq!((qwen.context_length, nomic.context_length), (8192, 2048));
    assert_eq!((qwen.resident, nomic.resident), (Some(true), Some(false)));
    assert_eq!((qwen.vision, qwen.tools, qwen.embeddings), (Some(true), None, Some(false)));
    assert_eq!((nomic.vision, nomic.tools, nomic.embeddings), (Some(false), Some(true), Some(true)));
    assert_eq!(&*qwen.quantization, "4bit");
}

#[tokio::test]
async fn servers_with_little_to_say_are_told_apart() {
    let check = async |kind: EngineKind, context: u32, answers: &[(&'static str, Value)]| {
        let found = probe_fake(answers).await.unwrap();
        assert_eq!((found.kind, found.models[0].context_length), (kind, context));
        assert_eq!(found.models[0].engine, kind.as_str());
    };
    let owned = |owner: &str| list(json!([{ "id": "m", "owned_by": owner, "max_model_len": 4096 }]));
    let version = ("/version", json!({ "version": "0.11.0" }));
    check(EngineKind::Vllm, 4096, &[("/v1/models", owned("vllm")), version.clone()]).await;
    check(EngineKind::Sglang, 4096, &[("/v1/models", owned("sglang"))]).await;
    check(
        EngineKind::LocalAi,
        0,
        &[("/v1/models", list(json!([{ "id": "m", "object": "model" }]))), version],
    )
    .await;
    check(EngineKind::OpenAi, 4096, &[("/v1/models", owned("me"))]).await;
    check(
        EngineKind::KoboldCpp,
        16384,
        &[
            ("/v1/models", list(json!([{ "id": "koboldcpp/m", "owned_by": "koboldcpp" }]))),
            ("/api/extra/version", json!({ "result": "KoboldCpp", "version": "1.99" })),
            ("/api/extra/true_max_context_length", json!({ "value": 16384 })),
            // It imitates Ollama too.
            ("/api/version", json!({ "version": "0.7.0" })),
            ("/api/tags", json!({ "models": [{ "name": "m", "model": "m" }] })),
        ],
    )
    .await;
}

#[tokio::test]
async fn servers_that_say_what_a_model_is_for_are_believed() {
    let sglang = async |info: Value| {
        let listed = list(json!([{ "id": "m", "owned_by": "sglang" }]));
        probe_fake(&[("/v1/models", listed), ("/get_model_info", info)]).await.unwrap().models.remove(0)
    };
    let text = sglang(json!({ "is_generation": true, "has_image_understanding": false })).await;
    assert_eq!(
        (text.embeddings, text.vision, text.audio, text.tools),
        (Some(false), Some(false), None, Some(true))
    );
    let vectors = sglang(json!({ "is_generation": false })).await;
    assert_eq!((vectors.embeddings, vectors.tools, vectors.schema), (Some(true), None, None));
    let listed = list(json!([
        { "id": "ears", "task": "automatic-speech-recognition" }, { "id": "mouth", "task": "text-to-speech" },
    ]));
    let models = probe_fake(&[("/v1/models", listed)]).await.unwrap().models;
    assert_eq!([models[0].transcription, models[0].speech], [Some(true), Some(false)]);
    assert_eq!([models[1].transcription, models[1].speech], [Some(false), Some(true)]);
}

#[tokio::test]
async fn an_engine_tells_what_it_runs_and_what_waits() {
    let owned = |owner: &str| list(json!([{ "id": "m", "owned_by": owner }]));
    let page = "vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_waiting 2\nvllm:kv_cache_usage_perc 0.5\n";
    let models = owned("vllm");
    let vllm = Router::new()
        .route("/v1/models", get(move || async move { axum::Json(models) }))
        .route("/metrics", get(move || async move { page }));
    let found = probe_at(&testing::serve(vllm).await, &mut Cache::default()).await.unwrap();
    assert_eq!(found.load, EngineLoad { running: 3, waiting: 2, kv_percent: Some(50) });

    let found = probe_fake(&[
        ("/v1/models", list(json!([{ "id": "m", "owned_by": "llamacpp" }]))),
        ("/props", json!({ "default_generation_settings": { "n_ctx": 8192 }, "total_slots": 2 })),
        ("/slots", json!([{ "id": 0, "is_processing": true }, { "id": 1, "is_processing": false }])),
    ])
    .await
    .unwrap();
    assert_eq!((found.slots, found.load), (2, EngineLoad { running: 1, ..EngineLoad::default() }));
    let silent = probe_fake(&[("/v1/models", owned("vllm"))]).await.unwrap();
    assert_eq!(silent.load, EngineLoad::default());
}

#[tokio::test]
async fn a_shoal_node_is_never_adopted() {
    let marked = |answer: Value| ([(NODE_HEADER, "abcdefgh")], axum::Json(answer)).into_response();
    // One that serves the whole API, and one that hides the header on the first path asked.
    let whole = Router::new().fallback(any(move || async move { marked(list(json!([{ "id": "m" }]))) }));
    let partly = Router::new()
        .route("/v1/models", get(|| async { axum::Json(list(json!([{ "id": "m", "owned_by": "vllm" }]))) }))
        .fallback(any(move || async move {
            (StatusCode::NOT_FOUND, [(NODE_HEADER, "abcdefgh")]).into_response()
        }));
    for router in [whole, partly] {
        let base = testing::serve(router).await;
        assert_eq!(probe_at(&base, &mut Cache::default()).await, Err(ProbeError::ShoalNode));
    }
}

#[tokio::test]
async fn what_is_no_engine_says_why() {
    let failing = async |router: Router| probe_at(&testing::serve(router).await, &mut Cache::default()).await;
    let page = Router::new().fallback(any(|| async { axum::response::Html("<html>hello</html>") }));
    assert_eq!(failing(page).await, Err(ProbeError::NotAnEngine));
    assert_eq!(failing(Router::new()).await, Err(ProbeError::NotAnEngine));
    let locked = Router::new().fallback(any(|| async { StatusCode::UNAUTHORIZED }));
    assert_eq!(failing(locked).await, Err(ProbeError::Unauthorized));
    let nowhere = testing::nowhere().await;
    assert_eq!(probe_at(&nowhere, &mut Cache::default()).await, Err(ProbeError::Unreachable));
}

#[tokio::test]
async fn a_server_that_hangs_costs_no_more_than_the_probes_time() {
    let base = testing::serve(Router::new().fallback(any(std::future::pending::<StatusCode>))).await;
    let client = http_client::build(Reach::Lan).unwrap();
    assert_eq!(probe(&client, &base, None, &mut Cache::default()).await, Err(ProbeError::Timeout));
}

#[tokio::test]
async fn hostile_lists_are_bounded() {
    let many: Vec<Value> = (0..1000).map(|n| json!({ "id": format!("m{n:04}") })).collect();
    assert_eq!(probe_fake(&[("/v1/models", list(json!(many)))]).await.unwrap().models.len(), MAX_MODELS);
    let odd = list(json!([{ "id": 7 }, 3, null, { "id": "m" }, { "id": "m" }]));
    assert_eq!(probe_fake(&[("/v1/models", odd)]).await.unwrap().models.len(), 1);
    let huge = Router::new().fallback(any(|| async { vec![b' '; MAX_ANSWER + 1] }));
    let found = probe_at(&testing::serve(huge).await, &mut Cache::default()).await;
    assert_eq!(found, Err(ProbeError::NotAnEngine));
}
