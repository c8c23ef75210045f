//! Both directions as pure functions, and what a client of the Messages API sees over scripted upstreams.

mod inbound;
mod mixed;
mod outbound;
mod served;
