//! Sessions: one command each, with a terminal of its own, supervised by a process that outlives it as long as it has
//! descendants.

pub mod job;
