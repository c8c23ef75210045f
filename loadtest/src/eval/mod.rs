//! Routing evaluation: the code that decides in production, fed from files and a pipe.
//!
//! The scorer stands at the other end of the pipe and holds the truth back; here is only what both sides may know.
//! Unlike the rest of this package it does use the router's pure core: that is what is measured.

pub mod cascade;
pub mod logits;
pub mod models;
pub mod prompt;
pub mod rows;
