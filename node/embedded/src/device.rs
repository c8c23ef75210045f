//! Where the computation runs: the first GPU that the build has kernels for, else the CPU.
//!
//! Kernels are a choice of the build (features `cuda` and `metal`), the GPU is one of the machine: a build with kernels
//! that finds no GPU, or no driver, answers on the CPU and says so once.

use candle_core::{Device, utils};

/// Returns the device for a model, and logs which it is and why.
pub(crate) fn pick() -> Device {
    first_of(&[
        ("cuda", utils::cuda_is_available(), &|| Device::new_cuda(0)),
        ("metal", utils::metal_is_available(), &|| Device::new_metal(0)),
    ])
}

type Open<'a> = &'a dyn Fn() -> Result<Device, candle_core::Error>;

/// Opens the first GPU of those that the build has kernels for.
fn first_of(kinds: &[(&str, bool, Open<'_>)]) -> Device {
    let mut missing = String::new();
    for (kind, _, open) in kinds.iter().filter(|(_, built, _)| *built) {
        match open() {
            Ok(device) => {
                tracing::info!(device = kind, "the embedded engine computes on the GPU");
                return device;
            }
            Err(error) => missing = format!("no {kind} GPU: {error}"),
        }
    }
    match missing.is_empty() {
        true => tracing::debug!(device = "cpu", "the embedded engine computes on the CPU"),
        false => tracing::warn!(device = "cpu", missing, "the embedded engine computes on the CPU"),
    }
    Device::Cpu
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_gpu_that_cannot_be_opened_or_is_not_built_for_leaves_the_cpu() {
        let asked = Cell::new(0);
        let broken = || {
            asked.set(asked.get() + 1);
            Err(candle_core::Error::Msg("no driver".to_owned()))
        };
        let unbuilt = || panic!("the build has no kernels for it");
        assert!(first_of(&[("a", true, &broken), ("b", false, &unbuilt)]).is_cpu());
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn the_first_that_opens_is_taken() {
        let later = || panic!("one was opened before");
        assert!(first_of(&[("a", true, &|| Ok(Device::Cpu)), ("b", true, &later)]).is_cpu());
    }
}
