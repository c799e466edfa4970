//! The localhost relay and the port ledger: what listens in the guest appears on the host's loopback.
//!
//! Not for: knowing what listens (that comes in), or how to reach the guest (a [`Connector`] does that). A mechanism.
