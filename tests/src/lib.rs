//! What the end-to-end tests share: a home of their own, the built programs, and the world they run in.
//!
//! Not for: anything that ships.

pub mod home;
pub mod run;
pub mod world;
