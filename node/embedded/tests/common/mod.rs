//! Tiny models with random weights, written as GGUF files, and a plain forward pass to compare the engine with.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

/// Ids of the control tokens; ids below 256 are bytes.
pub const IM_START: u32 = 256;
pub const IM_END: u32 = 257;

/// Shape of a tiny model.
#[derive(Clone)]
pub struct Tiny {
    pub architecture: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub context: u32,
    pub window: usize,
    pub rope_divisors: bool,
    pub tied: bool,
    /// Control tokens beside the two of every model.
    pub control: Vec<&'static str>,
    /// A SentencePiece vocabulary in place of a byte-level one.
    pub pieces: bool,
}

impl Tiny {
    pub fn new(architecture: &'static str) -> Self {
        Self {
            architecture,
            layers: if architecture == "gemma3" { 7 } else { 2 },
            hidden: 32,
            heads: 4,
            kv_heads: 2,
            head_dim: if matches!(architecture, "llama" | "qwen2") { 8 } else { 16 },
            feed_forward: 64,
            context: 256,
            window: 10,
            rope_divisors: false,
            tied: true,
            control: Vec::new(),
            pieces: false,
        }
    }

    /// Bytes, a few pieces of text, then control tokens.
    fn sentence_pieces(&self) -> Vec<String> {
        let mut texts: Vec<String> = ["<unk>", "<s>", "<|im_end|>"].map(str::to_owned).to_vec();
        texts.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        texts.extend(('a'..='z').map(String::from));
        let pieces = [
            "\u{2581}",
            "\u{2581}the",
            "call",
            ":",
            "{",
            "}",
            "{\"",
            "\":",
            "\":\u{2581}",
            "\n",
            "},",
            "name",
            "\u{e9}",
        ];
        texts.extend(pieces.map(str::to_owned));
        texts.extend(self.control.iter().map(|text| (*text).to_owned()));
        texts
    }

    fn sentence_piece_metadata(&self) -> Vec<(String, Value)> {
        let texts = self.sentence_pieces();
        let controls = texts.len() - self.control.len();
        let kind = |id: usize| match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            id if id >= controls => 3,
            _ => 1,
        };
        let entries = [
            ("model", Value::String("llama".to_owned())),
            ("scores", Value::Array(texts.iter().map(|text| Value::F32(-(text.len() as f32))).collect())),
            ("token_type", Value::Array((0..texts.len()).map(|id| Value::I32(kind(id))).collect())),
            ("tokens", Value::Array(texts.into_iter().map(Value::String).collect())),
            ("bos_token_id", Value::U32(1)),
            ("eos_token_id", Value::U32(2)),
            ("unknown_token_id", Value::U32(0)),
            ("add_space_prefix", Value::Bool(false)),
        ];
        entries.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).to_vec()
    }

    /// Returns how many tokens the model has.
    fn tokens(&self) -> usize {
        if self.pieces { self.sentence_pieces().len() } else { self.vocabulary().len() + 1 }
    }

    pub fn vocabulary(&self) -> Vec<String> {
        let mut spare = 256;
        let mut texts: Vec<String> = (0..=255u8)
            .map(|byte| match byte {
                b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte).to_string(),
                _ => {
                    spare += 1;
                    char::from_u32(spare - 1).expect("a letter").to_string()
                }
            })
            .collect();
        texts.extend(["<|im_start|>".to_owned(), "<|im_end|>".to_owned()]);
        texts.extend(self.control.iter().map(|text| (*text).to_owned()));
        texts
    }

    pub fn metadata(&self) -> Vec<(String, Value)> {
        let texts = self.vocabulary();
        let kinds = (0..texts.len()).map(|id| Value::I32(if id < 256 { 1 } else { 3 })).collect();
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let mut metadata = vec![
            ("general.architecture".to_owned(), Value::String(self.architecture.to_owned())),
            ("general.name".to_owned(), Value::String("Tiny".to_owned())),
            (key("block_count"), Value::U32(self.layers as u32)),
            (key("context_length"), Value::U32(self.context)),
            (key("embedding_length"), Value::U32(self.hidden as u32)),
            (key("feed_forward_length"), Value::U32(self.feed_forward as u32)),
            (key("attention.head_count"), Value::U32(self.heads as u32)),
            (key("attention.head_count_kv"), Value::U32(self.kv_heads as u32)),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
            (key("rope.freq_base"), Value::F32(1000.0)),
            ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
            ("tokenizer.ggml.pre".to_owned(), Value::String("gpt-2".to_owned())),
            (
                "tokenizer.ggml.tokens".to_owned(),
                Value::Array(texts.into_iter().map(Value::String).collect()),
            ),
            ("tokenizer.ggml.token_type".to_owned(), Value::Array(kinds)),
            ("tokenizer.ggml.merges".to_owned(), Value::Array(Vec::new())),
            ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(IM_END)),
        ];
        // An empty array is written with numbers as its element type, which is no list of texts.
        metadata.retain(|(key, _)| key != "tokenizer.ggml.merges");
        let unused = Value::Array(vec![Value::String("\u{100} \u{100}".to_owned())]);
        let merged = Value::String("\u{100}\u{100}".to_owned());
        metadata.push(("tokenizer.ggml.merges".to_owned(), unused));
        for (key, value) in &mut metadata {
            match (key.as_str(), value) {
                ("tokenizer.ggml.tokens", Value::Array(texts)) => texts.push(merged.clone()),
                ("tokenizer.ggml.token_type", Value::Array(kinds)) => kinds.push(Value::I32(1)),
                _ => {}
            }
        }
        if !matches!(self.architecture, "llama" | "qwen2") {
            metadata.push((key("attention.key_length"), Value::U32(self.head_dim as u32)));
            metadata.push((key("attention.value_length"), Value::U32(self.head_dim as u32)));
        }
        if self.architecture == "gemma3" {
            metadata.push((key("attention.sliding_window"), Value::U32(self.window as u32)));
        }
        if self.pieces {
            metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
            metadata.extend(self.sentence_piece_metadata());
        }
        metadata
    }

    pub fn weights(&self, seed: u64) -> Weights {
        let mut random = Lcg(seed);
        let mut tensors = Vec::new();
        let (h, q, k, f) =
            (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.feed_forward);
        let vocabulary = self.tokens();
        let mut add = |name: String, shape: Vec<usize>| {
            let count: usize = shape.iter().product();
            let values = (0..count).map(|_| {
                let value = random.next();
                match () {
                    () if name.contains("norm") => 1.0 + 0.3 * value,
                    () if name.contains("rope") => 2.0 + value,
                    () if name.contains("token_embd") => value,
                    () => value * 0.6,
                }
            });
            tensors.push((name.clone(), shape, values.collect()));
        };
        add("token_embd.weight".into(), vec![vocabulary, h]);
        add("output_norm.weight".into(), vec![h]);
        if !self.tied {
            add("output.weight".into(), vec![vocabulary, h]);
        }
        if self.rope_divisors {
            add("rope_freqs.weight".into(), vec![self.head_dim / 2]);
        }
        for layer in 0..self.layers {
            let mut part = |name: &str, shape: Vec<usize>| add(format!("blk.{layer}.{name}"), shape);
            part("attn_q.weight", vec![q, h]);
            part("attn_k.weight", vec![k, h]);
            part("attn_v.weight", vec![k, h]);
            part("attn_output.weight", vec![h, q]);
            part("ffn_gate.weight", vec![f, h]);
            part("ffn_up.weight", vec![f, h]);
            part("ffn_down.weight", vec![h, f]);
            part("attn_norm.weight", vec![h]);
            part("ffn_norm.weight", vec![h]);
            if self.architecture == "qwen2" {
                part("attn_q.bias", vec![q]);
                part("attn_k.bias", vec![k]);
                part("attn_v.bias", vec![k]);
            }
            if matches!(self.architecture, "qwen3" | "gemma3") {
                part("attn_q_norm.weight", vec![self.head_dim]);
                part("attn_k_norm.weight", vec![self.head_dim]);
            }
            if self.architecture == "gemma3" {
                part("post_attention_norm.weight", vec![h]);
                part("post_ffw_norm.weight", vec![h]);
            }
        }
        Weights { tensors }
    }

    /// Writes the model and returns its weights.
    pub fn write(&self, path: &Path, seed: u64) -> Weights {
        let weights = self.weights(seed);
        write(path, &self.metadata(), &weights, GgmlDType::F32);
        weights
    }
}

pub struct Weights {
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

/// Writes a GGUF file; matrices get the type `kind`, all else stays F32.
pub fn write(path: &Path, metadata: &[(String, Value)], weights: &Weights, kind: GgmlDType) {
    let tensors: Vec<(String, QTensor)> = weights
        .tensors
        .iter()
        .map(|(name, shape, values)| {
            let tensor = Tensor::from_slice(values, shape.as_slice(), &Device::Cpu).expect("a tensor");
            let kind = if shape.len() == 2 { kind } else { GgmlDType::F32 };
            (name.clone(), QTensor::quantize(&tensor, kind).expect("a type that fits"))
        })
        .collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = std::fs::File::create(path).expect("a file");
    gguf_file::write(&mut file, &metadata, &tensors).expect("a written file");
}

/// Numbers between -1 and 1.
pub struct Lcg(pub u64);

impl Lcg {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// The textbook forward pass: no cache, no chunks, no tensors; all positions at once.
pub struct Plain<'a> {
    tiny: &'a Tiny,
    weights: HashMap<&'a str, &'a [f32]>,
}

impl<'a> Plain<'a> {
    pub fn new(tiny: &'a Tiny, weights: &'a Weights) -> Self {
        let named = weights.tensors.iter().map(|(name, _, values)| (name.as_str(), values.as_slice()));
        Self { tiny, weights: named.collect() }
    }

    /// Returns the log-softmax after the last of `ids`.
    pub fn logprobs(&self, ids: &[u32]) -> Vec<f32> {
        let t = self.tiny;
        let states = self.states(ids);
        let table = if t.tied { "token_embd" } else { "output" };
        let logits = self.linear(&states[ids.len() - 1], table, t.tokens());
        let mass: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        logits.iter().map(|logit| (f64::from(*logit) - mass.ln()) as f32).collect()
    }

    /// Returns the normed state behind each of `ids`.
    pub fn states(&self, ids: &[u32]) -> Vec<Vec<f32>> {
        let t = self.tiny;
        let gemma = t.architecture == "gemma3";
        let embedding = self.weights["token_embd.weight"];
        let scale = if gemma { (t.hidden as f32).sqrt() } else { 1.0 };
        let mut xs: Vec<Vec<f32>> = ids
            .iter()
            .map(|id| embedding[*id as usize * t.hidden..][..t.hidden].iter().map(|x| x * scale).collect())
            .collect();
        for layer in 0..t.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let normed: Vec<_> = xs.iter().map(|x| self.norm(x, &name("attn_norm"))).collect();
            let slides = gemma && (layer + 1) % 6 != 0;
            let project = |part: &str, heads: usize, rotate: bool| -> Vec<Vec<f32>> {
                let rows = normed.iter().enumerate().map(|(position, x)| {
                    let mut y = self.linear(x, &name(part), heads * t.head_dim);
                    for head in y.chunks_mut(t.head_dim) {
                        if rotate && self.weights.contains_key(name(&format!("{part}_norm.weight")).as_str())
                        {
                            head.copy_from_slice(&self.norm(head, &name(&format!("{part}_norm"))));
                        }
                        if rotate {
                            self.rotate(head, position, slides);
                        }
                    }
                    y
                });
                rows.collect()
            };
            let (q, k) = (project("attn_q", t.heads, true), project("attn_k", t.kv_heads, true));
            let v = project("attn_v", t.kv_heads, false);
            for position in 0..ids.len() {
                let first = if slides { (position + 1).saturating_sub(t.window) } else { 0 };
                let mut mixed = vec![0.0; t.heads * t.head_dim];
                for head in 0..t.heads {
                    let shared = head / (t.heads / t.kv_heads) * t.head_dim;
                    let query = &q[position][head * t.head_dim..][..t.head_dim];
                    let scores: Vec<f32> = (first..=position)
                        .map(|at| dot(query, &k[at][shared..][..t.head_dim]) / (t.head_dim as f32).sqrt())
                        .collect();
                    for (at, share) in (first..=position).zip(softmax(&scores)) {
                        for i in 0..t.head_dim {
                            mixed[head * t.head_dim + i] += share * v[at][shared + i];
                        }
                    }
                }
                let mut y = self.linear(&mixed, &name("attn_output"), t.hidden);
                if gemma {
                    y = self.norm(&y, &name("post_attention_norm"));
                }
                add(&mut xs[position], &y);
            }
            for x in &mut xs {
                let normed = self.norm(x, &name("ffn_norm"));
                let gate = self.linear(&normed, &name("ffn_gate"), t.feed_forward);
                let up = self.linear(&normed, &name("ffn_up"), t.feed_forward);
                let inner: Vec<f32> = gate
                    .iter()
                    .zip(&up)
                    .map(|(g, u)| u * if gemma { gelu(*g) } else { g / (1.0 + (-g).exp()) })
                    .collect();
                let mut y = self.linear(&inner, &name("ffn_down"), t.hidden);
                if gemma {
                    y = self.norm(&y, &name("post_ffw_norm"));
                }
                add(x, &y);
            }
        }
        xs.iter().map(|x| self.norm(x, "output_norm")).collect()
    }

    fn norm(&self, x: &[f32], name: &str) -> Vec<f32> {
        let weight = self.weights[format!("{name}.weight").as_str()];
        let mean = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        x.iter().zip(weight).map(|(v, w)| v / (mean + 1e-5).sqrt() * w).collect()
    }

    fn linear(&self, x: &[f32], name: &str, outputs: usize) -> Vec<f32> {
        let weight = self.weights[format!("{name}.weight").as_str()];
        let mut y: Vec<f32> = (0..outputs).map(|row| dot(x, &weight[row * x.len()..][..x.len()])).collect();
        if let Some(bias) = self.weights.get(format!("{name}.bias").as_str()) {
            add(&mut y, bias);
        }
        y
    }

    fn rotate(&self, head: &mut [f32], position: usize, slides: bool) {
        let half = head.len() / 2;
        let base: f32 = if slides { 10_000.0 } else { 1_000.0 };
        for pair in 0..half {
            let divisor = self.weights.get("rope_freqs.weight").map_or(1.0, |divisors| divisors[pair]);
            let angle = position as f32 / base.powf(2.0 * pair as f32 / head.len() as f32) / divisor;
            let (a, b) = if self.tiny.architecture == "llama" {
                (2 * pair, 2 * pair + 1)
            } else {
                (pair, pair + half)
            };
            let (x, y) = (head[a], head[b]);
            head[a] = x * angle.cos() - y * angle.sin();
            head[b] = x * angle.sin() + y * angle.cos();
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add(a: &mut [f32], b: &[f32]) {
    a.iter_mut().zip(b).for_each(|(x, y)| *x += y);
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let greatest = scores.iter().copied().fold(f32::MIN, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| (score - greatest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh())
}
