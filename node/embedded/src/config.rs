//! Shape of a model, read from its metadata and bounded, so that the forward pass need not check again.

use crate::Error;
use crate::gguf::Gguf;

/// Layers; the largest models that anybody runs have 126.
const MAX_LAYERS: u64 = 512;

/// Width of a layer, of its feed-forward part and of a head, and heads: far above real ones, far below overflow.
const MAX_WIDTH: u64 = 1 << 18;

/// Family of models, as far as the forward pass tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Llama, Mistral, SmolLM2: rotation of neighbouring pairs.
    Llama,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: norms on q and k.
    Qwen3,
    /// Gemma 3: norms after each part, sliding windows, scaled embeddings.
    Gemma3,
}

/// Numbers that fix a model's computation.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) family: Family,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocabulary: usize,
    /// Positions that the model was trained for.
    pub(crate) context: usize,
    pub(crate) epsilon: f32,
    /// Rotary base of layers that see everything.
    pub(crate) rope_base: f32,
    /// Rotary base of layers with a sliding window.
    pub(crate) rope_base_sliding: f32,
    /// Factor on positions in layers that see everything (1 = none).
    pub(crate) rope_scale: f32,
    /// Positions that a sliding layer sees; `None` if no layer slides.
    pub(crate) window: Option<usize>,
    /// One layer in so many sees everything, the others slide.
    pub(crate) window_pattern: usize,
}

impl Config {
    pub(crate) fn read(gguf: &Gguf, vocabulary: usize) -> Result<Self, Error> {
        let name =
            gguf.text("general.architecture").ok_or_else(|| gguf.invalid("it names no architecture"))?;
        let family = match name {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma3" => Family::Gemma3,
            other => {
                return Err(gguf.unsupported(format!(
                    "the architecture {other} is not supported; llama, qwen2, qwen3 and gemma3 are"
                )));
            }
        };
        let key = |suffix: &str| format!("{name}.{suffix}");
        let bounded = |suffix: &str, max: u64| match gguf.number(&key(suffix)) {
            Some(value) if (1..=max).contains(&value) => Ok(value as usize),
            Some(value) => Err(gguf.invalid(format!("{} is {value}", key(suffix)))),
            None => Err(gguf.invalid(format!("{} is missing", key(suffix)))),
        };
        if gguf.number(&key("expert_count")).unwrap_or(0) > 0 {
            return Err(gguf.unsupported("models with experts are not supported"));
        }
        let hidden = bounded("embedding_length", MAX_WIDTH)?;
        let heads = bounded("attention.head_count", 1 << 12)?;
        let kv_heads = match gguf.number(&key("attention.head_count_kv")) {
            None => heads,
            Some(_) => bounded("attention.head_count_kv", 1 << 12)?,
        };
        let head_dim = match gguf.number(&key("attention.key_length")) {
            None => hidden / heads,
            Some(_) => bounded("attention.key_length", 1 << 12)?,
        };
        if heads % kv_heads != 0 || head_dim == 0 || head_dim % 2 != 0 {
            return Err(
                gguf.invalid(format!("{heads} heads, {kv_heads} of keys, width {head_dim} do not fit"))
            );
        }
        let rotated = gguf.number(&key("rope.dimension_count"));
        let values = gguf.number(&key("attention.value_length"));
        if rotated.is_some_and(|n| n != head_dim as u64) || values.is_some_and(|n| n != head_dim as u64) {
            return Err(
                gguf.unsupported("heads that are rotated in part or differ in width are not supported")
            );
        }
        let positive = |suffix: &str, default: f32| match gguf.float(&key(suffix)) {
            Some(value) if value > 0.0 => value,
            _ => default,
        };
        let scaled = gguf.text(&key("rope.scaling.type"));
        if scaled.is_some_and(|kind| !matches!(kind, "none" | "linear")) {
            return Err(gguf.unsupported("this kind of context stretching (rope scaling) is not supported"));
        }
        let factor = if scaled == Some("none") { 1.0 } else { positive("rope.scaling.factor", 1.0) };
        let window = match family {
            Family::Gemma3 => Some(bounded("attention.sliding_window", 1 << 24)?),
            _ => None,
        };
        Ok(Self {
            family,
            layers: bounded("block_count", MAX_LAYERS)?,
            hidden,
            feed_forward: bounded("feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            vocabulary,
            context: bounded("context_length", 1 << 24)?,
            epsilon: positive("attention.layer_norm_rms_epsilon", 1e-6),
            rope_base: positive("rope.freq_base", if family == Family::Gemma3 { 1e6 } else { 1e4 }),
            rope_base_sliding: positive("rope.local_freq_base", 1e4),
            rope_scale: 1.0 / factor,
            window,
            window_pattern: 6,
        })
    }

    /// Says whether a layer sees only the last `window` positions.
    pub(crate) fn slides(&self, layer: usize) -> bool {
        self.window.is_some() && !(layer + 1).is_multiple_of(self.window_pattern)
    }
}
