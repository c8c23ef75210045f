//! Who judges answers besides people: what anyone can see of them, and a model.
//!
//! The pipeline shows every answer of a chat that was accepted here to the [`witness`], off the path of the client.
//! The witness reads visible signs, notices questions that are asked again at once, and passes a sample on to the
//! [`evaluator`], which asks a model for a grade, and to [`shadow`], which lets another model answer the same. While a
//! client still waits, [`agreement`] asks another model whether it says the same.
//!
//! Prompts and answers are held here in memory, within a bound on their bytes, until they are judged; nothing of them
//! is stored or logged. What comes out is [`Judgement`](crate::feedback::Judgement)s: an arm and a score. A judgement
//! of weight w is handed on with probability w, so that the sums stay counts of whole judgements, which every member
//! of the mesh can check.

pub mod agreement;
mod allowance;
mod background;
pub mod evaluator;
mod form;
mod grade;
mod prompt;
mod settings;
pub mod shadow;
#[cfg(test)]
mod tests;
pub mod witness;

pub use self::prompt::PROMPT_VERSION;
pub use self::settings::{AgreementSettings, DEFAULT_PER_HOUR, EvaluatorSettings, LearningSettings};
