//! stub
pub mod batch;
