//! What a start works from: QEMU, the accelerator, the kernel, memory and processors.

use hostel_model::{Bytes, ErrorCode, Failure};
use hostel_proto::v1;
use hostel_qemu::{Accel, AccelChoice, AccelRequest, QemuBinary, probe_accel, probe_qemu};
use hostel_wslconf::MachineConf;

use super::{
    VmBackend,
    files::{self, BootFiles},
};
use crate::{engine::lock, kernels};

/// The most memory a VM gets under TCG unless it is asked for: every page is shared memory of this host.
const TCG_MEMORY: Bytes = Bytes::gib(4);

/// Less available memory than this on the host is too little to start a VM.
const LEAST_MEMORY: Bytes = Bytes::mib(384);

/// What a start works from.
pub(super) struct Plan {
    pub(super) conf: MachineConf,
    pub(super) qemu: QemuBinary,
    pub(super) accel: AccelChoice,
    pub(super) files: BootFiles,
    pub(super) memory: Bytes,
    pub(super) cpus: u32,
}

impl VmBackend {
    /// Finds QEMU; the answer is kept until the program changes its place.
    fn find_qemu(&self) -> Result<QemuBinary, Failure> {
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

    fn choose_accel(&self, conf: &MachineConf) -> Result<AccelChoice, Failure> {
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
        let host_cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let (cpus, capped) = conf.processors_for(host_cpus);
        if capped {
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
                cpus: cpus.min(255),
            },
            warnings,
        ))
    }

    /// Checks what a start needs, for `doctor`. Blocks for some 0.1 s; on a multi-threaded runtime only.
    pub fn checks(&self) -> Vec<v1::Check> {
        let mut checks = Vec::new();
        let mut say = |name: &str, result: Result<String, Failure>| {
            let (verdict, found, next_step) = match result {
                Ok(found) => ("ok", found, String::new()),
                Err(failure) => (
                    "error",
                    failure.message,
                    failure.hints.into_iter().next().unwrap_or_default(),
                ),
            };
            checks.push(v1::Check {
                name: name.to_owned(),
                verdict: verdict.to_owned(),
                found,
                next_step,
            });
        };
        tokio::task::block_in_place(|| {
            let conf = self.read_conf();
            say(
                "configuration",
                conf.clone().map(|(_, w)| {
                    if w.is_empty() {
                        "read".to_owned()
                    } else {
                        w.join("; ")
                    }
                }),
            );
            let conf = conf.map(|(c, _)| c).unwrap_or_default();
            say(
                "qemu",
                self.find_qemu()
                    .map(|q| format!("{} {}, {}", q.path.display(), q.version, q.machine)),
            );
            say(
                "accel",
                self.choose_accel(&conf)
                    .map(|a| format!("{}: {}", a.accel, a.reason)),
            );
            say(
                "guest program",
                match &self.init {
                    Some(path) if path.is_file() => Ok(path.display().to_string()),
                    _ => Err(Failure::new(
                        ErrorCode::VmStart,
                        "`hostel-init` is not beside `hosteld`",
                    )
                    .hint("cargo xtask build --release")),
                },
            );
            say(
                "host memory",
                match host_memory() {
                    (_, available) if available < LEAST_MEMORY => Err(Failure::new(
                        ErrorCode::OutOfMemory,
                        format!("{available} available"),
                    )
                    .hint("end some programs")),
                    (total, available) => Ok(format!("{available} of {total} available")),
                },
            );
        });
        checks
    }
}

/// Returns the host's memory: all of it, and what programs can still get (proc(5), meminfo).
fn host_memory() -> (Bytes, Bytes) {
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
