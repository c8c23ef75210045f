//! How many threads the kernels use.
//!
//! candle's pool is one per process, fixed at its first use, and its threads *spin* until all of them are done. If a
//! thread has to wait for a core, all others burn theirs meanwhile: with as many threads as cores and some other load,
//! SmolLM2-135M fell from 64 to 3 tokens a second, while a single thread kept 55 to 70. So it is better to leave a
//! core free. The pool reads [`THREADS_VARIABLE`], which must be in the environment when the process starts.

/// Environment variable that fixes the number of threads of the process's engine.
pub const THREADS_VARIABLE: &str = "CANDLE_NUM_THREADS";

/// Returns how many threads each of `engines` processes on this machine should use, 1 or more.
///
/// Leaves one core to everything else and shares the rest.
pub fn recommended_threads(engines: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    share(cores, engines)
}

fn share(cores: usize, engines: usize) -> usize {
    (cores.saturating_sub(1) / engines.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn a_core_stays_free_and_each_engine_has_a_thread() {
        let shares = [(1, 1), (2, 1), (2, 3), (8, 1), (8, 3), (16, 0)].map(|(cores, n)| share(cores, n));
        assert_eq!(shares, [1, 1, 1, 7, 2, 15]);
    }
}
