//! Embedded inference engine: a GGUF model inside the process, in Rust alone, on the CPU.
//!
//! A bare node answers with this engine, so it favours exactness and robustness over speed: token ids equal those of
//! the model's reference tokenizer, logprobs are the log-softmax of the raw logits, a damaged file gives a sentence.
//! It knows nothing of Shoal and of async runtimes: [`Engine::generate`] blocks its thread and calls back per token.

mod chat;
mod config;
mod engine;
mod error;
mod file;
mod gguf;
mod header;
mod model;
mod request;
mod sampler;
mod stream;
mod threads;
mod tokenizer;
mod weights;

pub use chat::ChatMessage;
pub use engine::Engine;
pub use error::Error;
pub use file::{ModelFile, ModelInfo};
pub use request::{FinishReason, Finished, GenerateRequest, LoadOptions, Requantize, Token};
pub use sampler::MAX_TOP_LOGPROBS;
pub use threads::{THREADS_VARIABLE, recommended_threads};
