//! The wire: code generated from `proto/hostel/v1/hostel.proto`, how failures travel in a gRPC status, and the limits
//! that both ends keep.
//!
//! Not for: connections to real sockets (the programs make those) or anything that a message means. A foundation.

mod connection;
mod failure;
mod guard;
pub mod limits;

pub use connection::Connection;
pub use failure::{failure_of, status_of};
pub use guard::{Guarded, clean};

/// Messages and services of generation 1.
#[expect(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the documentation is in the .proto"
)]
pub mod v1 {
    tonic::include_proto!("hostel.v1");
}
