//! Which host of a model gets a request: two at random, the cheaper one, by what was just measured.
//!
//! [`LoadBook`] keeps one cell per model and host: requests under way, time to first token, time per token,
//! failures, breaker. An [`InFlight`] guard feeds it while a request runs and frees its slot when it drops, so a
//! cancelled stream counts as load exactly as long as it runs. [`Balancer`] reads the cells and picks.

pub mod concurrency;
pub mod ewma;
pub mod forecast;
pub mod load;
pub mod p2c;
pub mod trend;

mod affinity;
mod cell;
mod condition;
mod length;
mod prefix;
mod reserve;

pub use concurrency::ConcurrencyLimit;
pub use ewma::PeakEwma;
pub use forecast::{Forecast, Work};
pub use load::{InFlight, Load, LoadBook};
pub use p2c::Balancer;
pub use prefix::Prefix;
pub use trend::Straight;
