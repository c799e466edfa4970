//! Names for the guest: answers its questions from the names of the house, the host's `/etc/hosts` and the host's resolvers.
//!
//! Whole DNS messages in, whole messages out; how they travel is not its business. A mechanism.
