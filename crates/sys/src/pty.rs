//! Pseudoterminals (pty(7)).
