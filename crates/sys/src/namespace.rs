//! Namespaces (namespaces(7), clone(2), setns(2)).
