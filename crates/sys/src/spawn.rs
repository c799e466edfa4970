//! Starting child processes with chosen descriptors that end with their parent (prctl(2), PR_SET_PDEATHSIG).
