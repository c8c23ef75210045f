//! Matrices and norms of a model, requantised at load where the file's type is slow on a CPU.
//!
//! SmolLM2-135M-Instruct, file in Q4_1. FIGURES

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
            Some(bias) => Some(bias.dequantize(&Device::Cpu)?),
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
            Some(weight) => Ok(Some(Self { weight: weight.dequantize(&Device::Cpu)?, epsilon })),
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
        Some(tensor) => Ok(QMatMul::from_qtensor(convert(tensor, columns, requantize)?)?),
        None => Err(gguf.invalid(format!("the tensor {name} is missing"))),
    }
}

fn convert(tensor: QTensor, columns: usize, requantize: Requantize) -> Result<QTensor, Error> {
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
            Ok(QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, target)?)
        }
        _ => Ok(tensor),
    }
}
