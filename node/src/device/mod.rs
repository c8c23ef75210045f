//! The device side: engines that run models on this machine, and the agent that offers them to the mesh.
//!
//! [`detect`] recognises engines, [`engine`] keeps one's model list fresh and runs inferences on it, [`in_process`]
//! makes an engine of code in this process, [`lfo`] one of a phone; [`dispatch`] puts several together, [`serve`] answers one inference
//! of the mesh, [`power`] says what the machine lives on, [`agent`] ties all of it together. A router uses the same engines for its own host.

pub mod agent;
pub mod agent_process;
pub mod detect;
pub mod dispatch;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod engine;
pub mod in_process;
pub mod lfo;
#[cfg(feature = "embedded")]
mod loading;
pub mod mesh;
pub mod power;
pub mod serve;
pub mod set;
pub mod slots;

#[cfg(test)]
pub(crate) mod testing;
