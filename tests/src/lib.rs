//! What the end-to-end tests and benchmarks share: a home of their own, the built programs, and the world they run in. And
//! the bodies of the fuzz targets.
//!
//! Not for: anything that ships.

pub mod bench;
pub mod fuzz;
pub mod home;
pub mod world;

pub use hostel_testkit::run;
