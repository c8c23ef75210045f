//! Text to token ids and back, built from the vocabulary inside the GGUF file.
//!
//! Two kinds exist: byte-level BPE (`gpt2`: SmolLM2, Llama 3, Qwen) whose splitting rule is named by
//! `tokenizer.ggml.pre`, and SentencePiece (`llama`: Llama 2, Gemma) whose merges follow from the pieces' scores.
//! A wrong splitting rule gives plausible text and wrong ids, so an unknown rule is refused rather than guessed.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{self, NormalizerWrapper, unicode::NFC};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::Error;
use crate::gguf::Gguf;

/// Tokens of a vocabulary; Gemma 3 has 262,144.
const MAX_VOCABULARY: usize = 1 << 20;

/// Splits of Llama 3: numbers in groups of up to three digits.
const SPLIT_LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Splits of Qwen 2 and 3: each digit alone.
const SPLIT_QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Bytes of one token; the longest real ones are runs of 256 spaces.
const MAX_TOKEN_BYTES: usize = 4_096;

/// Texts of tokens that end an answer, whatever the metadata says about them.
const END_TEXTS: [&str; 10] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<start_function_response>",
    "<eos>",
    "</s>",
];

/// Token types of GGUF.
const KIND_NORMAL: u64 = 1;
const KIND_CONTROL: u64 = 3;
const KIND_USER_DEFINED: u64 = 4;
const KIND_BYTE: u64 = 6;

/// What stands for a space in SentencePiece vocabularies.
const META_SPACE: char = '\u{2581}';

/// Exact tokenizer of one model.
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    texts: Vec<String>,
    kinds: Vec<u64>,
    byte_of_char: Option<HashMap<char, u8>>,
    begin: Option<u32>,
    add_begin: bool,
    add_end: bool,
    /// The token that the file names as the end; of those in `ends` only this one closes a text.
    end_of_text: Option<u32>,
    ends: Vec<u32>,
    /// Control tokens that are shown as text, since a call of a tool is written with them.
    markers: Vec<u32>,
}

impl Tokenizer {
    pub(crate) fn read(gguf: &Gguf) -> Result<Self, Error> {
        let model = gguf.text("tokenizer.ggml.model").ok_or_else(|| gguf.invalid("it has no tokenizer"))?;
        let texts =
            gguf.texts("tokenizer.ggml.tokens").ok_or_else(|| gguf.invalid("it has no vocabulary"))?;
        if texts.is_empty() || texts.len() > MAX_VOCABULARY {
            return Err(gguf.invalid(format!("its vocabulary has {} tokens", texts.len())));
        }
        if texts.iter().any(|text| text.len() > MAX_TOKEN_BYTES) {
            return Err(
                gguf.invalid(format!("a token of its vocabulary is longer than {MAX_TOKEN_BYTES} bytes"))
            );
        }
        let mut kinds = gguf.numbers("tokenizer.ggml.token_type").unwrap_or_default();
        kinds.resize(texts.len(), 1);
        let byte_level = match model {
            "gpt2" => true,
            "llama" => false,
            other => return Err(gguf.unsupported(format!("the tokenizer type {other} is not supported"))),
        };
        let mut inner =
            if byte_level { byte_level_bpe(gguf, &texts)? } else { sentence_piece(gguf, &texts)? };
        let added = texts.iter().zip(&kinds).filter_map(|(text, kind)| match *kind {
            _ if text.is_empty() => None,
            KIND_CONTROL => Some(AddedToken::from(text.clone(), true).normalized(false)),
            KIND_USER_DEFINED => Some(AddedToken::from(text.clone(), false).normalized(false)),
            _ => None,
        });
        inner.add_tokens(added.collect::<Vec<_>>()).map_err(|error| gguf.invalid(error.to_string()))?;

        let id = |key: &str| {
            gguf.number(&format!("tokenizer.ggml.{key}"))
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| (*id as usize) < texts.len())
        };
        let mut ends: Vec<u32> =
            ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(id).collect();
        for (index, (text, kind)) in texts.iter().zip(&kinds).enumerate() {
            if matches!(*kind, KIND_CONTROL | KIND_USER_DEFINED) && END_TEXTS.contains(&text.as_str()) {
                ends.push(index as u32);
            }
        }
        ends.sort_unstable();
        ends.dedup();
        let begin = id("bos_token_id");
        let end_of_text = id("eos_token_id");
        let add_begin = gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(!byte_level);
        let add_end = gguf.flag("tokenizer.ggml.add_eos_token").unwrap_or(false);
        let byte_of_char = byte_level.then(|| char_of_byte().into_iter().map(|(b, c)| (c, b)).collect());
        Ok(Self {
            inner,
            texts,
            kinds,
            byte_of_char,
            begin,
            add_begin,
            add_end,
            end_of_text,
            ends,
            markers: Vec::new(),
        })
    }

    /// Shows these tokens as text from now on, also if they are control tokens.
    pub(crate) fn reveal(&mut self, markers: &[&str]) {
        self.markers = markers.iter().filter_map(|marker| self.id_of(marker)).collect();
        self.markers.sort_unstable();
    }

    /// Returns the id of the control token or added token with that spelling.
    pub(crate) fn id_of(&self, spelling: &str) -> Option<u32> {
        let added = |id: &usize| matches!(self.kinds[*id], KIND_CONTROL | KIND_USER_DEFINED);
        (0..self.texts.len()).filter(added).find(|id| self.texts[*id] == spelling).map(|id| id as u32)
    }

    /// Returns for each token the bytes by which an answer may be spelled; none for a token that is no text: control
    /// tokens, markers, and whatever the file says is unknown or unused.
    pub(crate) fn spellings(&self) -> Vec<Vec<u8>> {
        let text = |id: u32| match self.kinds[id as usize] {
            KIND_NORMAL | KIND_USER_DEFINED | KIND_BYTE if !self.is_marker(id) => self.bytes(id),
            _ => Vec::new(),
        };
        (0..self.texts.len() as u32).map(text).collect()
    }

    pub(crate) fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn is_marker(&self, id: u32) -> bool {
        self.markers.binary_search(&id).is_ok()
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.texts.len()
    }

    /// Returns the ids of `text`; names of control tokens in it become those tokens.
    ///
    /// Puts the begin token first if the model wants one and the text does not begin with it.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoded = self.inner.encode_fast(text, false).map_err(|e| Error::Compute(e.to_string()))?;
        let mut ids = encoded.get_ids().to_vec();
        if let (true, Some(begin)) = (self.add_begin, self.begin)
            && ids.first() != Some(&begin)
        {
            ids.insert(0, begin);
        }
        Ok(ids)
    }

    /// Returns the ids of a text that stands for itself: with the end token behind it if the model wants one.
    pub(crate) fn encode_whole(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.encode(text)?;
        if let (true, Some(end)) = (self.add_end, self.end_of_text) {
            ids.push(end);
        }
        Ok(ids)
    }

    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// Returns the text of a token as the vocabulary spells it.
    pub(crate) fn spelling(&self, id: Option<u32>) -> &str {
        id.and_then(|id| self.texts.get(id as usize)).map_or("", String::as_str)
    }

    pub(crate) fn begin(&self) -> Option<u32> {
        self.begin
    }

    pub(crate) fn end(&self) -> Option<u32> {
        self.ends.first().copied()
    }

    /// Returns the bytes that a token stands for; a control token that is no marker stands for none.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        let (Some(text), Some(kind)) = (self.texts.get(id as usize), self.kinds.get(id as usize)) else {
            return Vec::new();
        };
        match (*kind, &self.byte_of_char) {
            (KIND_CONTROL, _) if !self.is_marker(id) => Vec::new(),
            (KIND_CONTROL | KIND_USER_DEFINED, _) => text.clone().into_bytes(),
            (KIND_BYTE, _) => byte_of_piece(text).map_or_else(Vec::new, |byte| vec![byte]),
            (_, Some(byte_of_char)) => text.chars().filter_map(|c| byte_of_char.get(&c).copied()).collect(),
            (_, None) => text.replace(META_SPACE, " ").into_bytes(),
        }
    }
}

fn byte_level_bpe(gguf: &Gguf, texts: &[String]) -> Result<tokenizers::Tokenizer, Error> {
    let merges = gguf.texts("tokenizer.ggml.merges").ok_or_else(|| gguf.invalid("it has no merges"))?;
    let merges = merges
        .iter()
        .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| gguf.invalid("a merge is not a pair"))?;
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let split = |pattern: &str| -> Result<PreTokenizerWrapper, Error> {
        let split =
            Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
                .map_err(|error| Error::Compute(error.to_string()))?;
        Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
    };
    let mut normalizer: Option<NormalizerWrapper> = None;
    let mut whole_words_first = false;
    let pre_tokenizer: PreTokenizerWrapper = match pre {
        "gpt-2" | "gpt2" => ByteLevel::new(false, true, true).into(),
        "smollm" => {
            Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()]).into()
        }
        "qwen2" => {
            normalizer = Some(NFC.into());
            split(SPLIT_QWEN2)?
        }
        "llama-bpe" | "llama3" | "llama-v3" => {
            whole_words_first = true;
            split(SPLIT_LLAMA3)?
        }
        other => return Err(gguf.unsupported(format!("the tokenizer's splitting rule {other} is not known"))),
    };
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary(texts), merges)
        .ignore_merges(whole_words_first)
        .build()
        .map_err(|error| gguf.invalid(format!("its merges do not fit its vocabulary ({error})")))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    tokenizer.with_normalizer(normalizer).map_err(|error| Error::Compute(error.to_string()))?;
    Ok(tokenizer)
}

/// SentencePiece BPE: of all pairs of neighbours the one whose union has the best score is joined first, so the merges
/// are all ways to cut a piece into two pieces, in the order of the scores.
fn sentence_piece(gguf: &Gguf, texts: &[String]) -> Result<tokenizers::Tokenizer, Error> {
    let scores = gguf.floats("tokenizer.ggml.scores").unwrap_or_default();
    if scores.len() != texts.len() {
        return Err(gguf.invalid("its vocabulary and its scores differ in number"));
    }
    let vocabulary = vocabulary(texts);
    let mut merges = Vec::new();
    for (text, score) in texts.iter().zip(&scores) {
        let mut cuts = Vec::new();
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(l), Some(r)) = (vocabulary.get(left), vocabulary.get(right)) {
                cuts.push((*l, *r, left.to_owned(), right.to_owned()));
            }
        }
        cuts.sort_unstable_by_key(|(l, r, ..)| (*l, *r));
        merges.extend(cuts.into_iter().map(|(_, _, left, right)| (*score, (left, right))));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        steps.push(normalizers::Prepend::new(META_SPACE.to_string()).into());
    }
    let replace = normalizers::Replace::new(" ", META_SPACE.to_string())
        .map_err(|error| Error::Compute(error.to_string()))?;
    steps.push(replace.into());
    let mut builder = BPE::builder()
        .vocab_and_merges(vocabulary, merges.into_iter().map(|(_, pair)| pair).collect())
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unknown) =
        gguf.number("tokenizer.ggml.unknown_token_id").and_then(|id| texts.get(id as usize))
    {
        builder = builder.unk_token(unknown.clone());
    }
    let bpe = builder.build().map_err(|error| gguf.invalid(error.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer
        .with_normalizer(Some(normalizers::Sequence::new(steps)))
        .map_err(|error| Error::Compute(error.to_string()))?;
    Ok(tokenizer)
}

fn vocabulary(texts: &[String]) -> Vocab {
    let mut vocabulary = Vocab::default();
    for (id, text) in texts.iter().enumerate() {
        vocabulary.entry(text.clone()).or_insert(id as u32);
    }
    vocabulary
}

/// The printable character that stands for each byte in byte-level vocabularies (GPT-2).
fn char_of_byte() -> Vec<(u8, char)> {
    let mut spare = 256;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => (byte, char::from(byte)),
            _ => {
                let stand_in = char::from_u32(spare).unwrap_or('\u{FFFD}');
                spare += 1;
                (byte, stand_in)
            }
        })
        .collect()
}

/// Parses the spelling of a byte token, such as `<0x0A>`.
fn byte_of_piece(text: &str) -> Option<u8> {
    u8::from_str_radix(text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}
