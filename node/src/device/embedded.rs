//! The embedded engine, as an [`Engine`]: GGUF models on the CPU, in this process.

use std::ops::ControlFlow;

use serde_json::Value;
use shoal_embedded::{
    CallRules, ChatMessage, Engine as Model, Error, FinishReason, GenerateRequest, JsonForm, Tool, ToolCall,
};
use shoal_proto::ModelInfo;

use super::detect::EngineKind;
use super::engine::Engine;
use super::in_process::{self, Call, Finish, GenerateError, Generation, Generator, Message, Summary, Token};

/// Makes an engine of a loaded model, served under `name`, that runs at most `slots` answers at a time.
///
/// All answers share the cores, so more slots make each slower; `None` takes one for each two cores, up to four.
pub fn engine(model: Model, name: impl Into<String>, slots: Option<u32>) -> Engine {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let slots = slots.unwrap_or_else(|| u32::try_from(cores / 2).unwrap_or(4).clamp(1, 4));
    in_process::engine(Embedded { model, name: name.into() }, slots)
}

struct Embedded {
    model: Model,
    name: String,
}

impl Generator for Embedded {
    fn describe(&self) -> ModelInfo {
        let info = self.model.info();
        ModelInfo {
            id: self.name.clone(),
            engine: EngineKind::Embedded.as_str().to_owned(),
            context_length: u32::try_from(info.context_length).unwrap_or(u32::MAX),
            digest: info.sha256.clone().unwrap_or_default(),
            quantization: info.quantization.clone(),
            size_bytes: info.size_bytes,
            tools: Some(info.takes_tools),
            logprobs: Some(true),
            embeddings: Some(info.pooling.is_some()),
            schema: Some(true),
            vision: Some(false),
            audio: Some(false),
            transcription: Some(false),
            speech: Some(false),
            ..ModelInfo::default()
        }
    }

    fn render_chat(&self, messages: &[Message], tools: Option<&Value>) -> Result<String, GenerateError> {
        let message = |message: &Message| ChatMessage {
            role: message.role.clone(),
            content: message.content.clone(),
            name: message.name.clone(),
            tool_calls: message.tool_calls.clone(),
            tool_call_id: message.tool_call_id.clone(),
        };
        let messages: Vec<ChatMessage> = messages.iter().map(message).collect();
        self.model.render_chat(&messages, tools).map_err(map)
    }

    fn generate(
        &self,
        generation: &Generation,
        cancel: &dyn Fn() -> bool,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<Summary, GenerateError> {
        let request = GenerateRequest {
            prompt: generation.prompt.clone(),
            max_tokens: generation.max_tokens,
            temperature: generation.temperature,
            top_p: generation.top_p,
            seed: generation.seed,
            stop: generation.stop.clone(),
            top_logprobs: generation.top_logprobs,
            frequency_penalty: generation.frequency_penalty,
            presence_penalty: generation.presence_penalty,
            logit_bias: generation.logit_bias.clone(),
            json: generation.json.as_ref().map(json_form),
            calls: generation.calls.as_ref().map(call_rules),
            ..GenerateRequest::default()
        };
        let mut hand_on = |token: shoal_embedded::Token| {
            let call = |call: ToolCall| Call { name: call.name, arguments: call.arguments };
            on_token(Token {
                text: token.text,
                logprob: token.logprob,
                top: token.top,
                bytes: token.bytes,
                calls: token.calls.into_iter().map(call).collect(),
            })
        };
        let finished = self.model.generate(&request, cancel, &mut hand_on).map_err(map)?;
        Ok(Summary {
            finish: match finished.reason {
                FinishReason::Stop => Finish::Stop,
                FinishReason::Calls => Finish::Calls,
                FinishReason::Length => Finish::Length,
                FinishReason::Cancelled => Finish::Cancelled,
            },
            prompt_tokens: finished.prompt_tokens,
            completion_tokens: finished.completion_tokens,
        })
    }

    fn embed(
        &self,
        text: &str,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Option<(Vec<f32>, usize)>, GenerateError> {
        self.model.embed(text, cancel).map_err(map)
    }
}

fn json_form(form: &in_process::JsonForm) -> JsonForm {
    match &form.schema {
        Some(schema) => JsonForm { schema: schema.clone(), strict: form.strict },
        None => JsonForm::any_object(),
    }
}

fn call_rules(rules: &in_process::CallRules) -> CallRules {
    let tool = |tool: &in_process::Tool| Tool {
        name: tool.name.clone(),
        parameters: tool.parameters.clone(),
        strict: tool.strict,
    };
    CallRules {
        tools: rules.tools.iter().map(tool).collect(),
        required: rules.required,
        parallel: rules.parallel,
    }
}

fn map(error: Error) -> GenerateError {
    let text = error.to_string();
    match error {
        Error::ContextTooLong { .. } => GenerateError::ContextTooLong(text),
        Error::EmptyPrompt | Error::InvalidRequest(_) => GenerateError::Invalid(text),
        Error::Form(_) => GenerateError::Unsupported(text),
        // A template's own words may quote the conversation.
        Error::Template(_) => {
            GenerateError::Invalid("the model's chat template refuses these messages".to_owned())
        }
        Error::Io { .. } | Error::Invalid { .. } | Error::Unsupported { .. } | Error::Compute(_) => {
            GenerateError::Failed("the embedded engine failed".to_owned())
        }
    }
}
