//! A model file that is not loaded: what its header says.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::calls::CallFormat;
use crate::gguf::Gguf;

/// A GGUF file on disk.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// Where it is.
    pub path: PathBuf,
}

impl ModelFile {
    /// Names a file; nothing is read.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Reads the header, some megabytes at most, without loading the model.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Invalid`].
    pub fn inspect(&self) -> Result<ModelInfo, Error> {
        Ok(ModelInfo::read(&Gguf::open(&self.path)?))
    }
}

/// What is known about a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Name for people and for requests: the file's name without `.gguf`.
    pub name: String,
    /// Title that the file gives itself.
    pub title: Option<String>,
    /// Such as `llama` or `qwen3`.
    pub architecture: String,
    /// Largest context in tokens, prompt and answer together.
    pub context_length: usize,
    /// The file's most common weight type, such as `Q4_1`.
    pub quantization: String,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the file in hex, if it was given at loading.
    pub sha256: Option<String>,
    /// Number of weights.
    pub parameters: u64,
    /// Whether the model is shown tools and its calls are understood.
    pub takes_tools: bool,
    /// How a text becomes a vector; `None` for a model that was not made for it.
    pub pooling: Option<Pooling>,
}

/// How the states of a text's tokens become its vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The state of the first token.
    First,
    /// The state of the last token.
    Last,
}

impl Pooling {
    /// Reads `{architecture}.pooling_type`, which only embedding models have.
    fn read(gguf: &Gguf, architecture: &str) -> Option<Self> {
        match gguf.number(&format!("{architecture}.pooling_type"))? {
            1 => Some(Self::Mean),
            2 => Some(Self::First),
            3 => Some(Self::Last),
            _ => None,
        }
    }
}

impl ModelInfo {
    pub(crate) fn read(gguf: &Gguf) -> Self {
        let architecture = gguf.text("general.architecture").unwrap_or("unknown").to_owned();
        let context = gguf.number(&format!("{architecture}.context_length")).unwrap_or(0);
        Self {
            name: name_of(gguf.path()),
            title: gguf.text("general.name").map(str::to_owned),
            context_length: usize::try_from(context).unwrap_or(usize::MAX),
            pooling: Pooling::read(gguf, &architecture),
            architecture,
            quantization: gguf.quantization(),
            size_bytes: gguf.size_bytes(),
            sha256: None,
            parameters: gguf.parameters(),
            takes_tools: gguf
                .text("tokenizer.chat_template")
                .is_some_and(|source| CallFormat::of_template(source).is_some()),
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
}
