//! The memory of this process (malloc_trim(3)).

#![expect(unsafe_code, reason = "malloc_trim is not wrapped elsewhere")]

/// Gives free memory of the heap back to the system. Worth calling after work that took much of it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
