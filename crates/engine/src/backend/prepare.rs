//! What a start works from: QEMU, the accelerator, the kernel, memory and processors.

use hostel_model::{Bytes, ErrorCode, Failure};
use hostel_qemu::{
    Accel, AccelChoice, AccelRequest, QemuBinary, Threads, Version, probe_accel, probe_qemu,
};
use hostel_wslconf::MachineConf;

use super::{
    VmBackend,
    files::{self, BootFiles},
};
use crate::{engine::lock, kernels};

/// The most memory a VM gets under TCG unless it is asked for: every page is shared memory of this host.
const TCG_MEMORY: Bytes = Bytes::gib(4);

/// Less available memory than this on the host is too little to start a VM.
pub(super) const LEAST_MEMORY: Bytes = Bytes::mib(384);

/// What a start works from.
pub(super) struct Plan {
    pub(super) conf: MachineConf,
    pub(super) qemu: QemuBinary,
    pub(super) accel: AccelChoice,
    pub(super) files: BootFiles,
    pub(super) memory: Bytes,
    host_cpus: u32,
}

impl Plan {
    /// See [`cpus`].
    pub(super) fn cpus(&self) -> (u32, String) {
        cpus(
            &self.conf,
            self.host_cpus,
            self.accel.accel,
            self.qemu.version,
        )
    }
}

impl VmBackend {
    /// Finds QEMU; the answer is kept until the program changes its place.
    pub(super) fn find_qemu(&self) -> Result<QemuBinary, Failure> {
        if let Some(known) = lock(&self.qemu).clone()
            && known.path.is_file()
        {
            return Ok(known);
        }
        let found = probe_qemu(None, &self.programs.path).map_err(|e| {
            Failure::from_error(ErrorCode::QemuMissing, &e)
                .hint("sudo apt-get install qemu-system-x86")
        })?;
        *lock(&self.qemu) = Some(found.clone());
        Ok(found)
    }

    pub(super) fn choose_accel(&self, conf: &MachineConf) -> Result<AccelChoice, Failure> {
        let request = match conf.hostel.accel {
            hostel_wslconf::Accel::Auto => AccelRequest::Auto,
            hostel_wslconf::Accel::Kvm => AccelRequest::Kvm,
            hostel_wslconf::Accel::Tcg => AccelRequest::Tcg,
        };
        probe_accel(request, self.registry.settings().kvm_failed.as_deref()).map_err(|e| {
            Failure::from_error(ErrorCode::Unsupported, &e)
                .hint("set `accel=auto` in section [hostel] of hostel.conf")
        })
    }

    /// Gathers everything that a start needs. Blocks.
    pub(super) fn prepare(&self, conf: MachineConf) -> Result<(Plan, Vec<String>), Failure> {
        let mut warnings = Vec::new();
        let kernel = kernels::chosen(&self.registry)?;
        let init = self
            .init
            .as_deref()
            .filter(|p| p.is_file())
            .ok_or_else(|| {
                Failure::new(
                    ErrorCode::VmStart,
                    "the guest program `hostel-init` is not beside `hosteld`",
                )
                .hint("cargo xtask build --release")
                .hint("or set HOSTEL_INIT to its path")
            })?;
        // Asking QEMU takes as long as everything else here.
        let (qemu, files) = std::thread::scope(|scope| {
            let qemu = scope.spawn(|| self.find_qemu());
            let files = files::prepare(&kernel, init, self.registry.layout());
            (qemu.join().expect("probing does not panic"), files)
        });
        let (qemu, files) = (qemu?, files?);
        let accel = self.choose_accel(&conf)?;
        let (total, available) = host_memory();
        if available < LEAST_MEMORY {
            return Err(Failure::new(
                ErrorCode::OutOfMemory,
                format!("the host has {available} of memory available, a VM needs at least {LEAST_MEMORY}"),
            )
            .hint("end some programs and try again"));
        }
        let mut memory = conf.memory_for(total);
        if conf.wsl2.memory.is_none() && accel.accel == Accel::Tcg {
            memory = memory.min(TCG_MEMORY);
        }
        let host_cpus = host_cpus();
        if let (cpus, true) = conf.processors_for(host_cpus) {
            warnings.push(format!(
                "the setting `processors` asks for more than the host's {host_cpus}; the VM gets {cpus}"
            ));
        }
        for (set, key) in [
            (conf.wsl2.kernel.is_some(), "kernel"),
            (conf.wsl2.kernel_modules.is_some(), "kernelModules"),
        ] {
            if set {
                warnings.push(format!(
                    "the setting `{key}` is not followed; install that kernel: hostel kernel install FILE --modules DIR"
                ));
            }
        }
        if conf.wsl2.memory.is_some_and(|wanted| wanted > total) {
            warnings.push(format!(
                "the setting `memory` asks for more than the host's {total}; the VM gets {memory}"
            ));
        }
        Ok((
            Plan {
                conf,
                qemu,
                accel,
                files,
                memory,
                host_cpus,
            },
            warnings,
        ))
    }
}

/// The most processors that the machine type takes.
const MOST_CPUS: u32 = 255;

/// Returns the processors of a VM: as set, else all of the host's, but one where more would only take turns. With it the
/// reason, a clause, when they are fewer or slower for that.
pub(super) fn cpus(
    conf: &MachineConf,
    host_cpus: u32,
    accel: Accel,
    qemu: Version,
) -> (u32, String) {
    let (cpus, _) = conf.processors_for(host_cpus);
    let cpus = cpus.min(MOST_CPUS);
    if cpus == 1 || Threads::of(accel, qemu) == Threads::Each {
        return (cpus, String::new());
    }
    let reason = format!("without KVM, processors take turns on one thread of QEMU {qemu}");
    (conf.wsl2.processors.map_or(1, |_| cpus), reason)
}

/// Returns how many processors this process may use.
pub(super) fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Returns the host's memory: all of it, and what programs can still get (proc(5), meminfo).
pub(super) fn host_memory() -> (Bytes, Bytes) {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|l| {
                l.strip_prefix(name)?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse::<u64>()
                    .ok()
            })
            .map_or(Bytes(u64::MAX), |kib| Bytes(kib.saturating_mul(1024)))
    };
    (field("MemTotal:"), field("MemAvailable:"))
}

#[cfg(test)]
mod tests {
    use hostel_wslconf::FileKind;

    use super::*;

    #[test]
    fn processors_that_would_take_turns_are_one_unless_asked_for() {
        let version = |major| Version {
            major,
            minor: 2,
            micro: 0,
        };
        for (text, host, accel, qemu, want) in [
            ("", 8, Accel::Kvm, 7, (8, false)),
            ("", 8, Accel::Tcg, 9, (8, false)),
            ("", 8, Accel::Tcg, 7, (1, true)),
            ("", 1, Accel::Tcg, 7, (1, false)),
            ("processors=4", 8, Accel::Tcg, 7, (4, true)),
            ("processors=1", 8, Accel::Tcg, 7, (1, false)),
            ("processors=4", 8, Accel::Tcg, 9, (4, false)),
            ("", 1000, Accel::Kvm, 9, (255, false)),
        ] {
            let (conf, _) = MachineConf::parse(&format!("[wsl2]\n{text}\n"), FileKind::HostelConf);
            let (got, reason) = cpus(&conf, host, accel, version(qemu));
            assert_eq!(
                (got, !reason.is_empty()),
                want,
                "{text} {host} {accel} {qemu}: {reason}"
            );
        }
    }
}
