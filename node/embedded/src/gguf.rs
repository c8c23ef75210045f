//! A GGUF file after its header was found sound: typed metadata and tensors by name.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{QTensor, gguf_file};

use crate::{Error, header};

/// An open model file: parsed metadata, and tensors that are read when asked for.
pub(crate) struct Gguf {
    path: PathBuf,
    size_bytes: u64,
    content: gguf_file::Content,
    reader: BufReader<File>,
    device: Device,
}

impl Gguf {
    /// Opens the file and parses its header; refuses what is damaged or not a GGUF file.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(Error::Invalid { path: path.to_owned(), reason: "it is not a regular file".into() });
        }
        let size_bytes = metadata.len();
        let mut reader = BufReader::with_capacity(1 << 16, file);
        header::check(&mut reader, size_bytes)
            .map_err(|reason| Error::Invalid { path: path.to_owned(), reason })?;
        reader.rewind().map_err(io)?;
        let content = gguf_file::Content::read(&mut reader)
            .map_err(|error| Error::Invalid { path: path.to_owned(), reason: error.to_string() })?;
        Ok(Self { path: path.to_owned(), size_bytes, content, reader, device: Device::Cpu })
    }

    /// Reads tensors onto this device from now on.
    pub(crate) fn read_onto(&mut self, device: Device) {
        self.device = device;
    }

    /// Returns the device that tensors are read onto.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.content.metadata.get(key)? {
            gguf_file::Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        number(self.content.metadata.get(key)?)
    }

    pub(crate) fn float(&self, key: &str) -> Option<f32> {
        match self.content.metadata.get(key)? {
            gguf_file::Value::F32(value) => Some(*value),
            gguf_file::Value::F64(value) => Some(*value as f32),
            _ => None,
        }
        .filter(|value| value.is_finite())
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.content.metadata.get(key)? {
            gguf_file::Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Option<Vec<String>> {
        self.array(key)?
            .iter()
            .map(|value| match value {
                gguf_file::Value::String(text) => Some(text.clone()),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn numbers(&self, key: &str) -> Option<Vec<u64>> {
        self.array(key)?.iter().map(number).collect()
    }

    pub(crate) fn floats(&self, key: &str) -> Option<Vec<f32>> {
        self.array(key)?
            .iter()
            .map(|value| match value {
                gguf_file::Value::F32(value) => Some(*value),
                _ => None,
            })
            .collect()
    }

    fn array(&self, key: &str) -> Option<&Vec<gguf_file::Value>> {
        match self.content.metadata.get(key)? {
            gguf_file::Value::Array(values) => Some(values),
            _ => None,
        }
    }

    /// Returns the elements of all tensors together: the parameters of the model.
    pub(crate) fn parameters(&self) -> u64 {
        self.content.tensor_infos.values().map(|info| info.shape.elem_count() as u64).sum()
    }

    /// Returns the tensor type that holds most of the weights, such as `Q4_1`.
    pub(crate) fn quantization(&self) -> String {
        let mut sizes: Vec<(String, usize)> = Vec::new();
        for info in self.content.tensor_infos.values() {
            let kind = format!("{:?}", info.ggml_dtype);
            match sizes.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, size)) => *size += info.shape.elem_count(),
                None => sizes.push((kind, info.shape.elem_count())),
            }
        }
        sizes.into_iter().max_by_key(|(_, size)| *size).map_or_else(|| "none".to_owned(), |(kind, _)| kind)
    }

    /// Says whether the file has a tensor of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Reads a tensor, or `None` if the file has no such one.
    ///
    /// Fails if its shape is not `shape`, so that no later step meets a surprise.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Option<QTensor>, Error> {
        let Some(info) = self.content.tensor_infos.get(name) else { return Ok(None) };
        if info.shape.dims() != shape {
            let reason = format!("tensor {name} has the shape {:?}, not {shape:?}", info.shape.dims());
            return Err(self.invalid(reason));
        }
        let tensor = info
            .read(&mut self.reader, self.content.tensor_data_offset, &self.device)
            .map_err(|error| self.invalid(error.to_string()))?;
        Ok(Some(tensor))
    }

    pub(crate) fn invalid(&self, reason: impl Into<String>) -> Error {
        Error::Invalid { path: self.path.clone(), reason: reason.into() }
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { path: self.path.clone(), what: what.into() }
    }
}

fn number(value: &gguf_file::Value) -> Option<u64> {
    match value {
        gguf_file::Value::U8(v) => Some(u64::from(*v)),
        gguf_file::Value::U16(v) => Some(u64::from(*v)),
        gguf_file::Value::U32(v) => Some(u64::from(*v)),
        gguf_file::Value::U64(v) => Some(*v),
        gguf_file::Value::I8(v) => u64::try_from(*v).ok(),
        gguf_file::Value::I16(v) => u64::try_from(*v).ok(),
        gguf_file::Value::I32(v) => u64::try_from(*v).ok(),
        gguf_file::Value::I64(v) => u64::try_from(*v).ok(),
        _ => None,
    }
}
