//! The memory of this process (malloc_trim(3), mallopt(3)).

#![expect(
    unsafe_code,
    reason = "these calls of malloc are not wrapped elsewhere"
)]

/// Gives free memory of the heap back to the system. Worth calling after work that took much of it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes all threads share two heaps instead of one for each of them; memory that one frees serves the others then.
///
/// To be called before there are threads: heaps that exist stay.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number that is read when a thread allocates for the first time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
