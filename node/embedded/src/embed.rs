//! Vectors of texts, from models that were made for it (their file names a pooling), such as Qwen 3 Embedding.
//!
//! A chat model's states make poor vectors, so none are made of them.

use crate::engine::{Engine, PREFILL_CHUNK};
use crate::{Error, Pooling};

impl Engine {
    /// Returns the vector of a text, of length 1, and the number of its tokens; `None` if `cancel` said to stop.
    ///
    /// # Errors
    /// [`Error::Form`] if the model makes no vectors, [`Error::EmptyPrompt`], [`Error::ContextTooLong`],
    /// [`Error::Compute`].
    pub fn embed(&self, text: &str, cancel: &dyn Fn() -> bool) -> Result<Option<(Vec<f32>, usize)>, Error> {
        let Some(pooling) = self.info().pooling else {
            return Err(Error::Form("the model was not made for vectors".to_owned()));
        };
        let ids = self.tokenizer.encode_whole(text)?;
        self.room(ids.len())?;
        let mut cache = self.model.cache();
        let mut sum = vec![0.0f64; self.model.width()];
        for (index, chunk) in ids.chunks(PREFILL_CHUNK).enumerate() {
            if cancel() {
                return Ok(None);
            }
            let states = self.model.states(chunk, &mut cache)?;
            let last = (index + 1) * PREFILL_CHUNK >= ids.len();
            let taken = match pooling {
                Pooling::Mean => states.as_slice(),
                Pooling::First if index == 0 => &states[..1],
                Pooling::Last if last => &states[states.len() - 1..],
                Pooling::First | Pooling::Last => &[],
            };
            for state in taken {
                sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !length.is_finite() || length == 0.0 {
            return Err(Error::Compute(
                "the model's output is not a vector; its file may be damaged".to_owned(),
            ));
        }
        Ok(Some((sum.iter().map(|x| (x / length) as f32).collect(), ids.len())))
    }
}
