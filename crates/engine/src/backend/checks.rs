//! What `doctor` says of the machine: whether a VM could be started, and how.

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;

use super::{
    VmBackend,
    prepare::{LEAST_MEMORY, cpus, host_cpus, host_memory},
};

impl VmBackend {
    /// Checks what a start needs, for `doctor`. Blocks for some 0.1 s; on a multi-threaded runtime only.
    pub fn checks(&self) -> Vec<v1::Check> {
        tokio::task::block_in_place(|| {
            let conf = self.read_conf();
            let configuration = conf.clone().map(|(_, warnings)| {
                if warnings.is_empty() {
                    "read".to_owned()
                } else {
                    warnings.join("; ")
                }
            });
            let conf = conf.map(|(c, _)| c).unwrap_or_default();
            let qemu = self.find_qemu();
            let accel = self.choose_accel(&conf);
            let processors = match (&qemu, &accel) {
                (Ok(qemu), Ok(accel)) => Some(cpus(&conf, host_cpus(), accel.accel, qemu.version)),
                _ => None,
            };
            let mut checks = vec![
                check("configuration", configuration),
                check(
                    "qemu",
                    qemu.map(|q| format!("{} {}, {}", q.path.display(), q.version, q.machine)),
                ),
                check("accel", accel.map(|a| format!("{}: {}", a.accel, a.reason))),
            ];
            checks.extend(processors.map(|(cpus, reason)| of_processors(cpus, &reason)));
            checks.push(check(
                "guest program",
                match &self.init {
                    Some(path) if path.is_file() => Ok(path.display().to_string()),
                    _ => Err(Failure::new(
                        ErrorCode::VmStart,
                        "`hostel-init` is not beside `hosteld`",
                    )
                    .hint("cargo xtask build --release")),
                },
            ));
            checks.push(check(
                "host memory",
                match host_memory() {
                    (_, available) if available < LEAST_MEMORY => Err(Failure::new(
                        ErrorCode::OutOfMemory,
                        format!("{available} available"),
                    )
                    .hint("end some programs")),
                    (total, available) => Ok(format!("{available} of {total} available")),
                },
            ));
            checks
        })
    }
}

fn check(name: &str, result: Result<String, Failure>) -> v1::Check {
    let (verdict, found, next_step) = match result {
        Ok(found) => ("ok", found, String::new()),
        Err(failure) => (
            "error",
            failure.message,
            failure.hints.into_iter().next().unwrap_or_default(),
        ),
    };
    v1::Check {
        name: name.to_owned(),
        verdict: verdict.to_owned(),
        found,
        next_step,
    }
}

/// Fewer processors than the host has work as well, only slower: that is worth a warning and a way out.
fn of_processors(cpus: u32, reason: &str) -> v1::Check {
    let mut check = check("processors", Ok(cpus.to_string()));
    if !reason.is_empty() {
        check.verdict = "warning".into();
        check.found = format!("{cpus}: {reason}");
        check.next_step = "install QEMU 8.1 or newer; Debian 12 has one in bookworm-backports: \
             sudo apt-get install -t bookworm-backports qemu-system-x86"
            .into();
    }
    check
}
