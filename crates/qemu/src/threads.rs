//! Whether the processors of a VM run beside each other.

use crate::{accel::Accel, probe::Version};

/// The first QEMU whose TCG locks a page of the guest while it translates the code in it.
const LOCKS_WHAT_IT_TRANSLATES: Version = Version {
    major: 8,
    minor: 1,
    micro: 0,
};

/// Who carries out the processors of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Each has a thread of its own.
    Each,
    /// All take turns on one thread: more than one processor brings nothing.
    One,
}

impl Threads {
    /// Returns what is right for this accelerator of this QEMU.
    ///
    /// Linux writes over its own code while it runs (`text_poke_bp`): the first rule of a packet filter, the first program on
    /// a control group and many others switch branches in the kernel on and off. Before QEMU 8.1 one processor's translation
    /// of such a place could be stored after the other processor had written there, and then stood for good: all who came by
    /// executed the breakpoint of the kernel that was no longer there, for ever. Commit deba78709ae8 of QEMU, "accel/tcg:
    /// Always lock pages before translation", mended it.
    pub fn of(accel: Accel, qemu: Version) -> Self {
        match accel {
            Accel::Tcg if qemu < LOCKS_WHAT_IT_TRANSLATES => Self::One,
            Accel::Tcg | Accel::Kvm => Self::Each,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_old_translator_takes_turns() {
        let version = |major, minor| Version {
            major,
            minor,
            micro: 22,
        };
        for (accel, qemu, want) in [
            (Accel::Tcg, version(7, 2), Threads::One),
            (Accel::Tcg, version(8, 0), Threads::One),
            (Accel::Tcg, version(8, 1), Threads::Each),
            (Accel::Tcg, version(10, 0), Threads::Each),
            (Accel::Kvm, version(7, 2), Threads::Each),
        ] {
            assert_eq!(Threads::of(accel, qemu), want, "{accel} {qemu}");
        }
    }
}
