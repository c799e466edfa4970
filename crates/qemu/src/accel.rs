//! KVM or TCG: decided from what the host shows, with the reason in words.

use std::{fmt, io, sync::LazyLock};

/// Who runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator; works everywhere, several times slower.
    Tcg,
}

impl Accel {
    /// Returns QEMU's name for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// Returns what the guest's kernel has to be told because of it.
    ///
    /// TCG's processor does not say that its time-stamp counter is constant, so the kernel would take the HPET: an access to
    /// a device, under QEMU's one lock, each time that somebody asks for the time. The counter is the host's own, the same
    /// for all processors (`cpu_get_tsc` in QEMU). KVM has a clock of its own for this.
    pub(crate) fn kernel_parameters(self) -> &'static [&'static str] {
        static STEADY: LazyLock<bool> = LazyLock::new(|| {
            has_steady_counter(&fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default())
        });
        match self {
            Self::Tcg if *STEADY => &["tsc=reliable"],
            Self::Tcg | Self::Kvm => &[],
        }
    }

    /// Returns the processor model that goes with it, and what is taken from it.
    ///
    /// A processor with ERMS copies and clears memory fastest with `rep movsb` and `rep stosb`, so its kernel and its libc
    /// use nothing else. TCG carries these out byte by byte: without the promise large copies are several times as fast.
    pub const fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max,erms=off,fsrm=off",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelRequest {
    /// KVM where it will work, else TCG.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// TCG.
    Tcg,
}

/// The decision and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccelChoice {
    /// What to use.
    pub accel: Accel,
    /// One clause for `status`, lower case.
    pub reason: String,
}

/// KVM was asked for and cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot use KVM: {reason}")]
pub struct KvmUnavailable {
    /// What is in the way.
    pub reason: String,
}

/// Decides. `remembered_fallback` is why an earlier start with KVM was given up on this host, if one was; `kvm_opens` is the
/// outcome of opening `/dev/kvm` for reading and writing.
///
/// A `/dev/kvm` that opens proves little: nested PVM hosts have one that takes every ioctl and never runs an ordinary kernel.
/// They do not show the processor's `vmx` or `svm`, so that flag is asked for too.
pub fn choose_accel(
    request: AccelRequest,
    remembered_fallback: Option<&str>,
    cpuinfo: &str,
    kvm_opens: Result<(), String>,
) -> Result<AccelChoice, KvmUnavailable> {
    let obstacle = match (has_virtualisation(cpuinfo), kvm_opens) {
        (_, Err(why)) => Some(why),
        (false, Ok(())) => Some("the processor shows neither vmx nor svm".to_owned()),
        (true, Ok(())) => None,
    };
    let choice = |accel, reason: String| Ok(AccelChoice { accel, reason });
    match (request, obstacle, remembered_fallback) {
        (AccelRequest::Tcg, _, _) => choice(Accel::Tcg, "asked for".into()),
        (AccelRequest::Kvm, Some(reason), _) => Err(KvmUnavailable { reason }),
        (AccelRequest::Kvm, None, _) => choice(Accel::Kvm, "asked for".into()),
        (AccelRequest::Auto, Some(reason), _) => choice(Accel::Tcg, reason),
        (AccelRequest::Auto, None, Some(why)) => {
            choice(Accel::Tcg, format!("KVM failed before: {why}"))
        }
        (AccelRequest::Auto, None, None) => {
            choice(Accel::Kvm, "the processor and /dev/kvm offer it".into())
        }
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    has_flag(cpuinfo, "vmx") || has_flag(cpuinfo, "svm")
}

/// Tells whether the processor's time-stamp counter always runs, and always at the same rate.
fn has_steady_counter(cpuinfo: &str) -> bool {
    has_flag(cpuinfo, "constant_tsc") && has_flag(cpuinfo, "nonstop_tsc")
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_ascii_whitespace().any(|f| f == flag))
}

/// Asks the host and decides; blocks for a moment. See [`choose_accel`].
pub fn probe_accel(
    request: AccelRequest,
    remembered_fallback: Option<&str>,
) -> Result<AccelChoice, KvmUnavailable> {
    let cpuinfo = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let opens = fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let opens = opens.map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "/dev/kvm does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not open /dev/kvm".to_owned(),
        _ => error.to_string(),
    });
    choose_accel(request, remembered_fallback, &cpuinfo, opens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vmx sse\nvmx flags\t: vnmi\n";
    const AMD: &str = "flags\t\t: fpu svm\n";
    const PVM: &str = "flags\t\t: fpu sse svme\nbugs\t\t: vmx\n";

    #[test]
    fn a_counter_is_trusted_when_it_neither_stops_nor_changes() {
        for (flags, steady) in [
            ("fpu constant_tsc nonstop_tsc", true),
            ("fpu constant_tsc tsc_known_freq", false),
            ("fpu nonstop_tsc", false),
        ] {
            assert_eq!(
                has_steady_counter(&format!("processor\t: 0\nflags\t\t: {flags}\n")),
                steady,
                "{flags}"
            );
        }
        assert!(Accel::Kvm.kernel_parameters().is_empty());
    }

    #[test]
    fn kvm_is_chosen_only_when_processor_device_and_memory_agree() {
        let opens = || Ok(());
        let shut = || Err("/dev/kvm does not exist".to_owned());
        for (request, remembered, cpuinfo, kvm, want) in [
            (AccelRequest::Auto, None, INTEL, opens(), Some(Accel::Kvm)),
            (AccelRequest::Auto, None, AMD, opens(), Some(Accel::Kvm)),
            (AccelRequest::Auto, None, PVM, opens(), Some(Accel::Tcg)),
            (AccelRequest::Auto, None, INTEL, shut(), Some(Accel::Tcg)),
            (
                AccelRequest::Auto,
                Some("no sign of life"),
                INTEL,
                opens(),
                Some(Accel::Tcg),
            ),
            (
                AccelRequest::Kvm,
                Some("no sign of life"),
                INTEL,
                opens(),
                Some(Accel::Kvm),
            ),
            (AccelRequest::Kvm, None, PVM, opens(), None),
            (AccelRequest::Kvm, None, AMD, shut(), None),
            (AccelRequest::Tcg, None, INTEL, opens(), Some(Accel::Tcg)),
        ] {
            let got = choose_accel(request, remembered, cpuinfo, kvm.clone());
            assert_eq!(
                got.as_ref().ok().map(|c| c.accel),
                want,
                "{request:?} {remembered:?} {kvm:?}: {got:?}"
            );
        }
        let choice =
            choose_accel(AccelRequest::Auto, Some("no sign of life"), INTEL, opens()).unwrap();
        assert!(choice.reason.contains("no sign of life"));
    }
}
