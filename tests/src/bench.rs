//! What the benchmarks share: figures, the table they are told in, a machine made by hand, and the two ends of a
//! connection whose speed is measured.

pub mod machine;
pub mod peer;
mod table;

pub use table::{Row, hand_in, head, median, rate, ratio, rounds, seconds, time};
