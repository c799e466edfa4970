//! Processes: pidfds, subreapers, reaping, limits (pidfd_open(2), prctl(2)).
