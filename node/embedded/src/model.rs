//! Forward pass of a decoder-only transformer over shared weights and a cache of its own per generation.
//!
//! candle's ready-made models keep the cache inside the weights, mask earlier chunks wrongly when a prompt is fed in
//! pieces (Gemma 3) and fix the context at 4,096 (Llama); so the graph is built here from candle's kernels, and one
//! [`Model`] serves any number of generations at a time. The four families differ in which optional parts exist.

use candle_core::quantized::QMatMul;
use candle_core::{Device, Module, Tensor};

use crate::config::{Config, Family};
use crate::gguf::Gguf;
use crate::weights::{Linear, Norm, matrix};
use crate::{Error, Requantize};

type Computed<T> = Result<T, candle_core::Error>;

/// Room that a cache gets at first, in positions; it doubles when full.
const FIRST_CAPACITY: usize = 256;

/// Weights of a model; immutable after loading.
#[derive(Debug)]
pub(crate) struct Model {
    config: Config,
    embedding: QMatMul,
    layers: Vec<Layer>,
    norm: Norm,
    output: Option<QMatMul>,
    /// Divisors of the rotary frequencies (Llama 3), one for each pair.
    rope_divisors: Option<Vec<f32>>,
    device: Device,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    post_attention_norm: Option<Norm>,
    feed_forward_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_feed_forward_norm: Option<Norm>,
}

/// Keys and values of one generation.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    length: usize,
}

/// Rotations for the positions of one call: cosines and sines, of shape (positions, head_dim / 2).
struct Rotations {
    everywhere: (Tensor, Tensor),
    sliding: Option<(Tensor, Tensor)>,
}

impl Model {
    pub(crate) fn read(gguf: &mut Gguf, config: Config, requantize: Requantize) -> Result<Self, Error> {
        let c = &config;
        let table = (c.vocabulary, c.hidden);
        let embedding = matrix(gguf, "token_embd.weight", table, requantize)?;
        // Without an output matrix of its own a model uses the embedding's.
        let output = match gguf.has("output.weight") {
            true => Some(matrix(gguf, "output.weight", table, requantize)?),
            false => None,
        };
        let half = c.head_dim / 2;
        let rope_divisors = match gguf.tensor("rope_freqs.weight", &[half])? {
            Some(tensor) => Some(tensor.dequantize(gguf.device())?.to_vec1::<f32>()?),
            None => None,
        };
        let layers =
            (0..c.layers).map(|index| Layer::read(gguf, c, index, requantize)).collect::<Result<_, _>>()?;
        let norm = Norm::read(gguf, "output_norm", c.hidden, c.epsilon)?;
        let device = gguf.device().clone();
        Ok(Self { config, embedding, layers, norm, output, rope_divisors, device })
    }

    /// Returns an empty cache.
    pub(crate) fn cache(&self) -> Cache {
        Cache { layers: self.layers.iter().map(|_| None).collect(), length: 0 }
    }

    /// Appends `tokens` to the cache and returns the logits after the last of them, one for each token id.
    ///
    /// `tokens` must not be empty and each id below the size of the vocabulary.
    pub(crate) fn forward(&self, tokens: &[u32], cache: &mut Cache) -> Computed<Vec<f32>> {
        let xs = self.hidden(tokens, cache)?;
        let last = self.norm.forward(&xs.narrow(0, tokens.len() - 1, 1)?)?;
        self.output.as_ref().unwrap_or(&self.embedding).forward(&last)?.flatten_all()?.to_vec1()
    }

    /// Appends `tokens` to the cache and returns the normed state behind each of them, of [`Self::width`] numbers.
    pub(crate) fn states(&self, tokens: &[u32], cache: &mut Cache) -> Computed<Vec<Vec<f32>>> {
        self.norm.forward(&self.hidden(tokens, cache)?)?.to_vec2()
    }

    /// Returns the numbers of a state.
    pub(crate) fn width(&self) -> usize {
        self.config.hidden
    }

    fn hidden(&self, tokens: &[u32], cache: &mut Cache) -> Computed<Tensor> {
        let count = tokens.len();
        let start = cache.length;
        let ids = Tensor::new(tokens, &self.device)?;
        let mut xs = self.embedding.embedding(&ids)?;
        if self.config.family == Family::Gemma3 {
            xs = (xs * (self.config.hidden as f64).sqrt())?;
        }
        let rotations = self.rotations(start, count)?;
        let mask = self.mask(start, count, None)?;
        let mask_sliding = match self.config.window {
            Some(window) => self.mask(start, count, Some(window))?,
            None => None,
        };
        for (index, layer) in self.layers.iter().enumerate() {
            let slides = self.config.slides(index);
            let rotation = match &rotations.sliding {
                Some(sliding) if slides => sliding,
                _ => &rotations.everywhere,
            };
            let mask = if slides { &mask_sliding } else { &mask };
            let slot = &mut cache.layers[index];
            xs = layer.forward(&self.config, &xs, slot, start, rotation, mask.as_ref())?;
        }
        cache.length = start + count;
        Ok(xs)
    }

    fn rotations(&self, start: usize, count: usize) -> Computed<Rotations> {
        let c = &self.config;
        let everywhere = self.rotation(c.rope_base, c.rope_scale, start, count)?;
        let sliding = match c.window {
            Some(_) => Some(self.rotation(c.rope_base_sliding, 1.0, start, count)?),
            None => None,
        };
        Ok(Rotations { everywhere, sliding })
    }

    /// Rotary embedding (Su et al. 2021), computed for the positions at hand: a table for a long context would
    /// outweigh a small model.
    fn rotation(&self, base: f32, scale: f32, start: usize, count: usize) -> Computed<(Tensor, Tensor)> {
        let half = self.config.head_dim / 2;
        let mut cosines = Vec::with_capacity(count * half);
        let mut sines = Vec::with_capacity(count * half);
        for position in start..start + count {
            for pair in 0..half {
                let exponent = 2.0 * pair as f64 / self.config.head_dim as f64;
                let divisor = self.rope_divisors.as_ref().map_or(1.0, |divisors| f64::from(divisors[pair]));
                let frequency = f64::from(base).powf(-exponent) / divisor;
                let (sine, cosine) = (position as f64 * f64::from(scale) * frequency).sin_cos();
                cosines.push(cosine as f32);
                sines.push(sine as f32);
            }
        }
        let shape = (count, half);
        Ok((Tensor::from_vec(cosines, shape, &self.device)?, Tensor::from_vec(sines, shape, &self.device)?))
    }

    /// Returns what to add to the scores, of shape (`count`, `start + count`): 0 where a position may look, else -inf.
    fn mask(&self, start: usize, count: usize, window: Option<usize>) -> Computed<Option<Tensor>> {
        let total = start + count;
        let window = window.unwrap_or(usize::MAX);
        if count == 1 && total <= window {
            return Ok(None);
        }
        let mut mask = vec![f32::NEG_INFINITY; count * total];
        for row in 0..count {
            let position = start + row;
            let first = (position + 1).saturating_sub(window);
            mask[row * total + first..=row * total + position].fill(0.0);
        }
        Ok(Some(Tensor::from_vec(mask, (count, total), &self.device)?))
    }
}

impl Layer {
    fn read(gguf: &mut Gguf, c: &Config, index: usize, requantize: Requantize) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let linear = |gguf: &mut Gguf, part: &str, shape| Linear::read(gguf, &name(part), shape, requantize);
        let layer = Self {
            q: linear(gguf, "attn_q", (queries, c.hidden))?,
            k: linear(gguf, "attn_k", (keys, c.hidden))?,
            v: linear(gguf, "attn_v", (keys, c.hidden))?,
            out: linear(gguf, "attn_output", (c.hidden, queries))?,
            gate: linear(gguf, "ffn_gate", (c.feed_forward, c.hidden))?,
            up: linear(gguf, "ffn_up", (c.feed_forward, c.hidden))?,
            down: linear(gguf, "ffn_down", (c.hidden, c.feed_forward))?,
            attention_norm: Norm::read(gguf, &name("attn_norm"), c.hidden, c.epsilon)?,
            feed_forward_norm: Norm::read(gguf, &name("ffn_norm"), c.hidden, c.epsilon)?,
            q_norm: Norm::read_if_any(gguf, &name("attn_q_norm"), c.head_dim, c.epsilon)?,
            k_norm: Norm::read_if_any(gguf, &name("attn_k_norm"), c.head_dim, c.epsilon)?,
            post_attention_norm: Norm::read_if_any(gguf, &name("post_attention_norm"), c.hidden, c.epsilon)?,
            post_feed_forward_norm: Norm::read_if_any(gguf, &name("post_ffw_norm"), c.hidden, c.epsilon)?,
        };
        let normed = layer.q_norm.is_some() && layer.k_norm.is_some();
        let posts = layer.post_attention_norm.is_some() && layer.post_feed_forward_norm.is_some();
        match c.family {
            Family::Qwen3 if !normed => Err(gguf.invalid("a Qwen 3 layer lacks the norms of q and k")),
            Family::Gemma3 if !normed || !posts => {
                Err(gguf.invalid("a Gemma 3 layer lacks some of its norms"))
            }
            _ => Ok(layer),
        }
    }

    fn forward(
        &self,
        c: &Config,
        xs: &Tensor,
        slot: &mut Option<(Tensor, Tensor)>,
        start: usize,
        rotation: &(Tensor, Tensor),
        mask: Option<&Tensor>,
    ) -> Computed<Tensor> {
        let normed = self.attention_norm.forward(xs)?;
        let mut ys = self.attention(c, &normed, slot, start, rotation, mask)?;
        if let Some(norm) = &self.post_attention_norm {
            ys = norm.forward(&ys)?;
        }
        let xs = (xs + ys)?;
        let normed = self.feed_forward_norm.forward(&xs)?;
        let gate = self.gate.forward(&normed)?;
        let gate = if c.family == Family::Gemma3 { gate.gelu()? } else { gate.silu()? };
        let mut ys = self.down.forward(&(gate * self.up.forward(&normed)?)?)?;
        if let Some(norm) = &self.post_feed_forward_norm {
            ys = norm.forward(&ys)?;
        }
        xs + ys
    }

    /// Grouped-query attention (Ainslie et al. 2023): the query heads that share a key head are stacked as rows of one
    /// matrix, so keys and values are never copied per head.
    fn attention(
        &self,
        c: &Config,
        xs: &Tensor,
        slot: &mut Option<(Tensor, Tensor)>,
        start: usize,
        (cosines, sines): &(Tensor, Tensor),
        mask: Option<&Tensor>,
    ) -> Computed<Tensor> {
        let count = xs.dim(0)?;
        let total = start + count;
        let heads = |xs: Tensor, heads: usize| xs.reshape((count, heads, c.head_dim));
        let mut q = heads(self.q.forward(xs)?, c.heads)?;
        let mut k = heads(self.k.forward(xs)?, c.kv_heads)?;
        let v = heads(self.v.forward(xs)?, c.kv_heads)?.transpose(0, 1)?.contiguous()?;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q = q_norm.forward(&q)?;
            k = k_norm.forward(&k)?;
        }
        let rotate = |xs: Tensor| {
            let xs = xs.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
            match c.family {
                Family::Llama => candle_nn::rotary_emb::rope_i(&xs, cosines, sines),
                _ => candle_nn::rotary_emb::rope(&xs, cosines, sines),
            }?
            .squeeze(0)
        };
        let q = (rotate(q)? * (1.0 / (c.head_dim as f64).sqrt()))?;
        let (k, v) = append(slot, &rotate(k)?, &v, start)?;
        let group = c.heads / c.kv_heads;
        let stacked = (c.kv_heads, group * count, c.head_dim);
        let mut scores = q.reshape(stacked)?.matmul(&k.t()?)?;
        if let Some(mask) = mask {
            scores = scores.reshape((c.heads, count, total))?.broadcast_add(mask)?;
            scores = scores.reshape((c.kv_heads, group * count, total))?;
        }
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let mixed = mixed.reshape((c.heads, count, c.head_dim))?.transpose(0, 1)?;
        self.out.forward(&mixed.reshape((count, c.heads * c.head_dim))?)
    }
}

/// Writes new keys and values behind the `start` cached ones and returns views of all of them.
fn append(
    slot: &mut Option<(Tensor, Tensor)>,
    k: &Tensor,
    v: &Tensor,
    start: usize,
) -> Computed<(Tensor, Tensor)> {
    let (heads, count, width) = k.dims3()?;
    let total = start + count;
    let grow = |old: Option<&Tensor>| -> Computed<Tensor> {
        let capacity = total.max(2 * start).max(FIRST_CAPACITY);
        let grown = Tensor::zeros((heads, capacity, width), k.dtype(), k.device())?;
        if let (Some(old), true) = (old, start > 0) {
            grown.slice_set(&old.narrow(1, 0, start)?.contiguous()?, 1, 0)?;
        }
        Ok(grown)
    };
    let (keys, values) = match slot.take() {
        Some((keys, values)) if keys.dim(1)? >= total => (keys, values),
        Some((keys, values)) => (grow(Some(&keys))?, grow(Some(&values))?),
        None => (grow(None)?, grow(None)?),
    };
    keys.slice_set(k, 1, start)?;
    values.slice_set(v, 1, start)?;
    let views = (keys.narrow(1, 0, total)?, values.narrow(1, 0, total)?);
    *slot = Some((keys, values));
    Ok(views)
}
