//! Lock files that name their holder (flock(2)).
