//! Embedded inference engine: a GGUF model inside the process, in Rust alone, on the CPU; on a GPU with the feature `cuda`
//! or `metal`.
//!
//! A bare node answers with this engine, so it favours exactness and robustness over speed: token ids equal those of
//! the model's reference tokenizer, logprobs are the log-softmax of the raw logits, a damaged file gives a sentence.
//! It knows nothing of Shoal and of async runtimes: [`Engine::generate`] blocks its thread and calls back per token.

mod calls;
mod chat;
mod config;
mod constraint;
mod device;
mod embed;
mod engine;
mod error;
mod file;
mod form;
mod gguf;
mod header;
mod model;
mod request;
mod sampler;
mod stream;
mod threads;
mod tokenizer;
mod weights;

pub use calls::ToolCall;
pub use chat::ChatMessage;
pub use engine::Engine;
pub use error::Error;
pub use file::{ModelFile, ModelInfo, Pooling};
pub use form::{CallRules, JsonForm, Tool};
pub use request::{FinishReason, Finished, GenerateRequest, LoadOptions, Requantize, Token};
pub use sampler::MAX_TOP_LOGPROBS;
pub use threads::{THREADS_VARIABLE, recommended_threads};
