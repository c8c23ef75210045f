//! Matrices and norms of a model, requantised at load where the file's type is slow on a CPU.
//!
//! candle has no fast kernel for Q4_1 and Q5; Q8_0 holds what those types hold and has one. SmolLM2-135M-Instruct, file
//! in Q4_1, on a shared machine of two cores with AVX-512, one thread, command
//! `CANDLE_NUM_THREADS=1 cargo run --release -p shoal-embedded --example speed -- MODEL.gguf never|q4_0|q8_0`:
//!
//! | weights | answer tokens/s | prompt of 501 tokens/s | CPU seconds of the run | KL to 32-bit weights, nats a token |
//! |---|---|---|---|---|
//! | Q4_1 as in the file | 44 | 34 | 13.6 | 0.005 |
//! | Q4_0 | 53 | 85 | 7.8 | 0.244 |
//! | Q8_0 (the default for such files) | 70 | 135 | 6.1 | 0.006 |
//!
//! The divergence is over the 20 likeliest next tokens at 27 places of an English text; the part that all share comes
//! from the kernels, which round activations to 8 bits. So Q4_0 is no choice even where it were faster. The file's own
//! Q4_0, Q8_0 and K-types have fast kernels and stay as they are.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};

use crate::gguf::Gguf;
use crate::{Error, Requantize};

/// Linear map without or with a bias.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: QMatMul,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `{name}.weight`, of shape (`outputs`, `inputs`), and `{name}.bias` if the file has it.
    pub(crate) fn read(
        gguf: &mut Gguf,
        name: &str,
        (outputs, inputs): (usize, usize),
        requantize: Requantize,
    ) -> Result<Self, Error> {
        let weight = matrix(gguf, &format!("{name}.weight"), (outputs, inputs), requantize)?;
        let bias = match gguf.tensor(&format!("{name}.bias"), &[outputs])? {
            Some(bias) => Some(bias.dequantize(gguf.device())?),
            None => None,
        };
        Ok(Self { weight, bias })
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor, candle_core::Error> {
        let ys = self.weight.forward(xs)?;
        match &self.bias {
            Some(bias) => ys.broadcast_add(bias),
            None => Ok(ys),
        }
    }
}

/// Root-mean-square norm (Zhang and Sennrich 2019).
#[derive(Debug)]
pub(crate) struct Norm {
    weight: Tensor,
    epsilon: f32,
}

impl Norm {
    /// Reads `{name}.weight`, or `None` if the file has no such norm.
    pub(crate) fn read_if_any(
        gguf: &mut Gguf,
        name: &str,
        width: usize,
        epsilon: f32,
    ) -> Result<Option<Self>, Error> {
        match gguf.tensor(&format!("{name}.weight"), &[width])? {
            Some(weight) => Ok(Some(Self { weight: weight.dequantize(gguf.device())?, epsilon })),
            None => Ok(None),
        }
    }

    /// Reads `{name}.weight`.
    pub(crate) fn read(gguf: &mut Gguf, name: &str, width: usize, epsilon: f32) -> Result<Self, Error> {
        match Self::read_if_any(gguf, name, width, epsilon)? {
            Some(norm) => Ok(norm),
            None => Err(gguf.invalid(format!("the tensor {name}.weight is missing"))),
        }
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor, candle_core::Error> {
        candle_nn::ops::rms_norm(xs, &self.weight, self.epsilon)
    }
}

/// Reads a matrix of shape (`rows`, `columns`).
pub(crate) fn matrix(
    gguf: &mut Gguf,
    name: &str,
    (rows, columns): (usize, usize),
    requantize: Requantize,
) -> Result<QMatMul, Error> {
    match gguf.tensor(name, &[rows, columns])? {
        Some(tensor) => Ok(QMatMul::from_qtensor(convert(tensor, columns, requantize, gguf.device())?)?),
        None => Err(gguf.invalid(format!("the tensor {name} is missing"))),
    }
}

/// Converts a matrix; the conversion itself runs on the CPU, once, wherever the matrix then lies.
fn convert(
    tensor: QTensor,
    columns: usize,
    requantize: Requantize,
    device: &Device,
) -> Result<QTensor, Error> {
    let target = match (requantize, tensor.dtype()) {
        (Requantize::Never, _) => None,
        (Requantize::Auto, GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1) => Some(GgmlDType::Q8_0),
        (Requantize::Auto, GgmlDType::F16 | GgmlDType::BF16) => Some(GgmlDType::Q8_0),
        (Requantize::Auto, _) => None,
        (Requantize::Q4_0, _) => Some(GgmlDType::Q4_0),
        (Requantize::Q8_0, _) => Some(GgmlDType::Q8_0),
    };
    match target {
        Some(target) if target != tensor.dtype() && columns.is_multiple_of(target.block_size()) => {
            let exact = tensor.dequantize(device)?.to_device(&Device::Cpu)?;
            Ok(QTensor::quantize_onto(&exact, target, device)?)
        }
        _ => Ok(tensor),
    }
}
