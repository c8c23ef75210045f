//! Requests through a scripted pipeline, and what their judges make of them.
