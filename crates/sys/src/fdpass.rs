//! Passing descriptors over unix sockets (SCM_RIGHTS, unix(7)).
