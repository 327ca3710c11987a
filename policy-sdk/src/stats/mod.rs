//! Windows and statistics over event time, each of a fixed size.
//!
//! | question | use |
//! |---|---|
//! | how much in the last second | [`WindowSum`] |
//! | how many a second | [`Rate`] |
//! | far from the usual, well-behaved values | [`Ewma`] |
//! | far from the usual, bursty values | [`MedianRing`] |
//! | slowly getting worse | [`Cusum`] |
//! | tail against median | [`Log2Histogram`] |
//! | not again so soon | [`Cooldown`] |
//!
//! None of these panics or becomes NaN for any input; values that are not finite are ignored.
//! Stop feeding a baseline while its alarm is on, or it learns that the fault is normal.

mod baseline;
mod cooldown;
mod histogram;
mod window;

pub use baseline::{Cusum, Ewma, MedianRing};
pub use cooldown::Cooldown;
pub use histogram::Log2Histogram;
pub use window::{Rate, WindowSum};
