//! What each kind of engine says about its models, as [`ModelInfo`]. Pure: JSON in, values out.
//!
//! Every field is optional to us: engines change their answers between versions, and a model with an unknown context
//! length is still a model. Where engines leave doubt, the careful reading is taken: the context that is in
//! use rather than the one the weights could have, and *remote* when a model may leave the machine.

use std::collections::HashMap;

use serde_json::Value;
use shoal_proto::ModelInfo;

use crate::upstream::ollama;

/// Slots of engines that batch continuously and do not tell their limit: their queue costs time to first token
/// long before they refuse.
pub(super) const BATCHING_SLOTS: u32 = 32;

/// Slots of a server about which nothing is known.
pub(super) const UNKNOWN_SLOTS: u32 = 4;

/// First version of Ollama whose OpenAI API returns log-probabilities.
const OLLAMA_LOGPROBS: [u32; 3] = [0, 12, 11];

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

fn has(list: &Value, word: &str) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|entry| entry == word))
}

/// Digest of the weights, from a server that tells one in its list.
fn digest(model: &Value) -> String {
    let told = [text(model, "digest"), text(&model["meta"], "digest")];
    let told = told.into_iter().find(|digest| !digest.is_empty()).unwrap_or_default();
    told.strip_prefix("sha256:").unwrap_or(told).to_owned()
}

/// Models of a server of which only `/v1/models` is known.
pub(super) fn served(listed: &[Value], engine: &'static str) -> Vec<ModelInfo> {
    let batching = matches!(engine, "vllm" | "sglang");
    listed
        .iter()
        .map(|model| {
            let lengths = ["max_model_len", "context_length", "context_window", "max_context_length"];
            // Servers for recordings write the task beside each model, in the hub's words.
            let task = model["task"].as_str();
            let does = |word: &str| task.map(|task| task == word);
            ModelInfo {
                id: text(model, "id").to_owned(),
                engine: engine.to_owned(),
                context_length: lengths.iter().map(|key| number(&model[key])).find(|n| *n > 0).unwrap_or(0),
                // Both accept tool calls for any model; whether the model makes good ones, use will tell.
                tools: batching.then_some(true),
                logprobs: batching.then_some(true),
                schema: batching.then_some(true),
                transcription: does("automatic-speech-recognition"),
                speech: does("text-to-speech"),
                digest: digest(model),
                ..ModelInfo::default()
            }
        })
        .collect()
}

/// SGLang: `/get_model_info` tells what its one model makes, and newer versions what it takes.
pub(super) fn sglang(listed: &[Value], info: &Value) -> Vec<ModelInfo> {
    let mut models = served(listed, "sglang");
    for model in &mut models {
        let makes_text = info["is_generation"].as_bool();
        model.embeddings = makes_text.map(|text| !text);
        model.vision = info["has_image_understanding"].as_bool();
        model.audio = info["has_audio_understanding"].as_bool();
        if makes_text == Some(false) {
            (model.tools, model.logprobs, model.schema) = (None, None, None);
        }
    }
    models
}

/// KoboldCpp: one model, its context told apart.
pub(super) fn koboldcpp(listed: &[Value], context: &Value) -> Vec<ModelInfo> {
    let mut models = served(listed, "koboldcpp");
    for model in &mut models {
        model.context_length = number(&context["value"]);
    }
    models
}

/// `llama-server`: `/v1/models` names the model, `/props` knows the rest.
pub(super) fn llama_cpp(listed: &[Value], props: &Value) -> Vec<ModelInfo> {
    let path = text(props, "model_path");
    let template = text(props, "chat_template");
    let caps = &props["chat_template_caps"];
    let describe = |model: &Value| ModelInfo {
        id: text(model, "id").rsplit(['/', '\\']).next().unwrap_or_default().to_owned(),
        engine: "llama.cpp".to_owned(),
        context_length: number(&props["default_generation_settings"]["n_ctx"]),
        quantization: quantization(path).or_else(|| quantization(text(model, "id"))).unwrap_or_default(),
        size_bytes: model["meta"]["size"].as_u64().unwrap_or(0),
        // Where the template knows no tools, the server writes them into the prompt itself: no lack, and no promise.
        tools: caps["supports_tools"].as_bool().unwrap_or_else(|| template.contains("tools")).then_some(true),
        vision: props["modalities"]["vision"].as_bool(),
        audio: props["modalities"]["audio"].as_bool(),
        logprobs: Some(true),
        schema: Some(true),
        digest: digest(model),
        ..ModelInfo::default()
    };
    listed.iter().map(describe).collect()
}

/// Slots of `llama-server`, at least 1.
pub(super) fn llama_cpp_slots(props: &Value) -> u32 {
    number(&props["total_slots"]).max(1)
}

/// LM Studio's own list, which tells types and states.
pub(super) fn lm_studio(list: &Value) -> Vec<ModelInfo> {
    let describe = |model: &Value| {
        let loaded = number(&model["loaded_context_length"]);
        ModelInfo {
            id: text(model, "id").to_owned(),
            engine: "lmstudio".to_owned(),
            context_length: if loaded > 0 { loaded } else { number(&model["max_context_length"]) },
            quantization: text(model, "quantization").to_owned(),
            // Of the others it asks for calls in words of its own.
            tools: has(&model["capabilities"], "tool_use").then_some(true),
            vision: model["type"].as_str().map(|kind| kind == "vlm"),
            embeddings: model["type"].as_str().map(|kind| kind == "embeddings"),
            schema: Some(true),
            resident: model["state"].as_str().map(|state| state == "loaded"),
            ..ModelInfo::default()
        }
    };
    list["data"].as_array().map_or(&[][..], Vec::as_slice).iter().map(describe).collect()
}

/// Name under which Ollama serves a model of its list.
pub(super) fn ollama_name(model: &Value) -> Option<&str> {
    model["model"].as_str().or_else(|| model["name"].as_str())
}

/// The few fields of `/api/show` that matter; the rest (licence, template, tensors) is large.
pub(super) fn ollama_essence(shown: &Value) -> Value {
    let native = shown["model_info"].as_object().and_then(|info| {
        info.iter().find(|(key, _)| key.ends_with(".context_length")).map(|(_, length)| length.clone())
    });
    let parameters = text(shown, "parameters").lines().map(str::split_whitespace);
    let chosen =
        parameters.rev().find_map(|mut words| (words.next()? == "num_ctx").then(|| words.next()).flatten());
    serde_json::json!({
        "native": native,
        "chosen": chosen.and_then(|text| text.parse::<u32>().ok()),
        "capabilities": shown["capabilities"],
        "remote_host": shown["remote_host"],
        "remote_model": shown["remote_model"],
    })
}

/// Ollama: the list, the details by "name digest", what is loaded now, and the version.
pub(super) fn ollama(
    tags: &Value,
    shown: &HashMap<String, Value>,
    running: &Value,
    version: &Value,
) -> Vec<ModelInfo> {
    // Versions before it pass over the wish.
    let logprobs = version["version"].as_str().map(|version| at_least(version, OLLAMA_LOGPROBS));
    let loaded = running["models"].as_array().map_or(&[][..], Vec::as_slice);
    let describe = |model: &Value| {
        let name = ollama_name(model)?;
        let digest = text(model, "digest");
        let details = shown.get(&format!("{name} {digest}")).unwrap_or(&Value::Null);
        let filled = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        let remote = [model, details].iter().any(|m| filled(&m["remote_host"]) || filled(&m["remote_model"]))
            || name.ends_with("-cloud")
            || name.ends_with(":cloud");
        let running = loaded.iter().find(|entry| ollama_name(entry) == Some(name));
        let in_use = running.map(|m| number(&m["context_length"]));
        let native = number(&details["native"]);
        let chosen = number(&details["chosen"]);
        // Somebody chose a window, or a request gets one that holds it; what is loaded with more keeps it.
        let window = if chosen > 0 { chosen } else { in_use.unwrap_or(0).max(ollama::MAX_WINDOW) };
        let context_length = match native {
            native if remote => native,
            0 if chosen == 0 => in_use.unwrap_or(0).max(ollama::DEFAULT_WINDOW),
            0 => chosen,
            native => window.min(native),
        };
        // It refuses pictures, sound and tools for a model without the word; vectors it makes of any.
        let can = |word| details["capabilities"].is_array().then(|| has(&details["capabilities"], word));
        Some(ModelInfo {
            id: name.to_owned(),
            engine: "ollama".to_owned(),
            context_length,
            digest: digest.strip_prefix("sha256:").unwrap_or(digest).to_owned(),
            quantization: text(&model["details"], "quantization_level").to_owned(),
            size_bytes: model["size"].as_u64().unwrap_or(0),
            tools: can("tools"),
            vision: can("vision"),
            audio: can("audio"),
            logprobs: if remote { Some(false) } else { logprobs },
            embeddings: can("embedding").filter(|can| *can),
            schema: Some(true),
            remote,
            // What runs elsewhere is never loaded here, and needs not be.
            resident: (!remote).then_some(running.is_some()),
            ..ModelInfo::default()
        })
    };
    tags["models"].as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(describe).collect()
}

fn at_least(version: &str, least: [u32; 3]) -> bool {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0)) >= least
}

/// Finds a quantisation name such as `Q4_K_M`, `IQ3_XS` or `BF16` in the name of a weights file.
fn quantization(path: &str) -> Option<String> {
    let file = path.rsplit(['/', '\\']).next()?;
    let stem = file.strip_suffix(".gguf").unwrap_or(file);
    let is_name = |part: &&str| {
        let upper = part.to_ascii_uppercase();
        let digits =
            upper.strip_prefix("IQ").or_else(|| upper.strip_prefix('Q')).or_else(|| upper.strip_prefix("TQ"));
        matches!(upper.as_str(), "F16" | "BF16" | "F32" | "MXFP4")
            || digits.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()) && rest.len() <= 8)
    };
    stem.rsplit(['-', '.']).find(is_name).map(str::to_ascii_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantisation_is_read_off_the_file_name() {
        let check =
            |path: &str, name: Option<&str>| assert_eq!(quantization(path).as_deref(), name, "{path}");
        check("/models/Qwen2.5-7B-Instruct-Q4_K_M.gguf", Some("Q4_K_M"));
        check("smollm2-135m-instruct-q4_1.gguf", Some("Q4_1"));
        check("C:\\models\\x.IQ3_XS.gguf", Some("IQ3_XS"));
        check("gemma-BF16.gguf", Some("BF16"));
        check("Qwen2.5-7B.gguf", None);
        check("", None);
    }

    #[test]
    fn versions_compare_by_number() {
        for (version, expected) in [
            ("0.12.11", true),
            ("0.13.0", true),
            ("1.0", true),
            ("0.12.9", false),
            ("0.9.9-rc1", false),
            ("", false),
        ] {
            assert_eq!(at_least(version, OLLAMA_LOGPROBS), expected, "{version}");
        }
    }
}
