//! A Shoal node.

pub mod model;
