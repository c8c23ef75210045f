//! Bounds check of a GGUF header before anything is allocated from its numbers.
//!
//! A model file comes from the internet. This walk reads the header once with constant memory and refuses counts,
//! lengths, shapes and offsets that a real model never has or that the file's size contradicts; after it the
//! parser's allocations are bounded by [`MAX_HEADER_BYTES`] and the size of the file.
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashSet;
use std::io::{Read, Seek};

/// Tensors in one file; the largest dense models have about 1,500.
const MAX_TENSORS: u64 = 32_768;

/// Metadata entries; real files have 20 to 100.
const MAX_ENTRIES: u64 = 4_096;

/// Elements over all arrays; a vocabulary of 262,144 with types, scores and merges needs about 1.5 million.
const MAX_ELEMENTS: u64 = 8 << 20;

/// Bytes of one string; the longest real ones are chat templates of some 20 kB.
const MAX_STRING: u64 = 1 << 20;

/// Bytes of the whole header; Gemma 3's is about 15 MB.
const MAX_HEADER_BYTES: u64 = 128 << 20;

/// Elements of one tensor; the largest embedding tables have about 2^31.
const MAX_TENSOR_ELEMENTS: u64 = 1 << 34;

/// Nesting of arrays; the format allows any, real files use one level.
const MAX_DEPTH: u32 = 4;

/// Reads the header and returns why the file must be refused, if it must.
///
/// `file_bytes` is the size of the whole file.
pub(crate) fn check<R: Read + Seek>(reader: R, file_bytes: u64) -> Result<(), String> {
    let mut walk = Walk { reader, file_bytes, read: 0, elements: 0, wide: true };
    walk.header().map_err(|refusal| match refusal {
        Refusal::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the file ends within its header".to_owned()
        }
        Refusal::Io(error) => error.to_string(),
        Refusal::Reason(reason) => reason,
    })
}

enum Refusal {
    Io(std::io::Error),
    Reason(String),
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Reason(reason.into()))
}

struct Walk<R> {
    reader: R,
    file_bytes: u64,
    read: u64,
    elements: u64,
    /// Lengths are 64 bits wide (versions 2 and 3), else 32.
    wide: bool,
}

impl<R: Read + Seek> Walk<R> {
    fn header(&mut self) -> Result<(), Refusal> {
        if self.file_bytes == 0 {
            return refuse("the file is empty");
        }
        if &self.bytes::<4>()? != b"GGUF" {
            return refuse("it does not begin with the letters GGUF");
        }
        let version = self.u32()?;
        self.wide = match version {
            1 => false,
            2 | 3 => true,
            other => return refuse(format!("version {other} of the format is unknown")),
        };
        let tensors = self.length()?;
        let entries = self.length()?;
        if tensors > MAX_TENSORS || entries > MAX_ENTRIES {
            return refuse(format!("it claims {tensors} tensors and {entries} metadata entries"));
        }
        let mut alignment = 32;
        for _ in 0..entries {
            let key = self.string()?;
            let kind = self.u32()?;
            if key == "general.alignment" {
                if kind != 4 {
                    return refuse("its alignment is not a 32-bit number");
                }
                alignment = u64::from(self.u32()?);
                if !alignment.is_power_of_two() || alignment > 1 << 16 {
                    return refuse(format!("its alignment is {alignment}"));
                }
            } else {
                self.value(kind, 0)?;
            }
        }
        let mut names = HashSet::new();
        let mut ends = Vec::new();
        for _ in 0..tensors {
            let name = self.string()?;
            ends.push(self.tensor(&name)?);
            if !names.insert(name) {
                return refuse("a tensor appears twice");
            }
        }
        let data_start = self.read.div_ceil(alignment) * alignment;
        let end = ends.into_iter().max().unwrap_or(0);
        match data_start.checked_add(end) {
            Some(end) if end <= self.file_bytes => Ok(()),
            _ => refuse(format!(
                "its tensors need {} bytes after the header, the file has {} (was the download cut short?)",
                end,
                self.file_bytes.saturating_sub(data_start)
            )),
        }
    }

    /// Returns where the tensor ends, in bytes after the start of the tensor data.
    fn tensor(&mut self, name: &str) -> Result<u64, Refusal> {
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > 4 {
            return refuse(format!("tensor {name} has {dimensions} dimensions"));
        }
        let mut count: u64 = 1;
        for _ in 0..dimensions {
            let size = self.length()?;
            count = match count.checked_mul(size) {
                Some(count) if count > 0 && count <= MAX_TENSOR_ELEMENTS => count,
                _ => return refuse(format!("tensor {name} has an impossible shape")),
            };
        }
        let kind = self.u32()?;
        let Some((block, bytes)) = block_of(kind) else {
            return refuse(format!("tensor {name} is of the unknown or unsupported type {kind}"));
        };
        if !count.is_multiple_of(block) {
            return refuse(format!("tensor {name} does not fill whole blocks of {block}"));
        }
        let offset = self.bytes().map(u64::from_le_bytes)?;
        match offset.checked_add(count / block * bytes) {
            Some(end) => Ok(end),
            None => refuse(format!("tensor {name} lies beyond the end of the file")),
        }
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<(), Refusal> {
        match kind {
            0 | 1 => self.skip(1),
            7 => match self.bytes::<1>()? {
                [0 | 1] => Ok(()),
                [other] => refuse(format!("a truth value is {other}")),
            },
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            8 => self.string().map(drop),
            9 => self.array(depth),
            other => refuse(format!("a metadata value has the unknown type {other}")),
        }
    }

    fn array(&mut self, depth: u32) -> Result<(), Refusal> {
        if depth >= MAX_DEPTH {
            return refuse("its arrays are nested too deeply");
        }
        let kind = self.u32()?;
        let count = self.length()?;
        self.elements = self.elements.saturating_add(count);
        if self.elements > MAX_ELEMENTS {
            return refuse(format!("its metadata claims more than {MAX_ELEMENTS} array elements"));
        }
        let fixed = match kind {
            0 | 1 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => 0,
        };
        if fixed > 0 {
            return self.skip(count * fixed);
        }
        for _ in 0..count {
            self.value(kind, depth + 1)?;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String, Refusal> {
        let length = self.length()?;
        if length > MAX_STRING {
            return refuse(format!("a text in its header claims {length} bytes"));
        }
        self.advance(length)?;
        let mut text = vec![0; length as usize];
        self.reader.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn length(&mut self) -> Result<u64, Refusal> {
        if self.wide { Ok(u64::from_le_bytes(self.bytes()?)) } else { Ok(u64::from(self.u32()?)) }
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), Refusal> {
        self.advance(count)?;
        let mut left = count as i64;
        while left > 0 {
            let step = left.min(1 << 20);
            self.reader.seek_relative(step)?;
            left -= step;
        }
        Ok(())
    }

    fn advance(&mut self, count: u64) -> Result<(), Refusal> {
        self.read = self.read.saturating_add(count);
        if self.read > MAX_HEADER_BYTES {
            return refuse(format!("its header is larger than {MAX_HEADER_BYTES} bytes"));
        }
        if self.read > self.file_bytes {
            return refuse("the file ends within its header");
        }
        Ok(())
    }
}

/// Returns elements and bytes of one block of a tensor type that the engine reads.
fn block_of(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 => (1, 4),
        1 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        _ => return None,
    })
}
