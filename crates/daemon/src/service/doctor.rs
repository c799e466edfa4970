//! Checks of the daemon's own surroundings.

use hostel_model::Bytes;
use hostel_proto::v1::Check;

use super::Service;

/// Less free space than this is worth a warning.
const LITTLE_SPACE: Bytes = Bytes::gib(2);

/// The most memory that the daemon should hold when idle.
const MUCH_MEMORY: Bytes = Bytes::mib(100);

impl Service {
    /// Looks at everything that an ordinary day needs.
    pub(super) async fn checks(&self) -> Vec<Check> {
        let mut checks = vec![
            self.state(),
            self.space(),
            self.memory(),
            self.kernel().await,
        ];
        checks.extend(self.backend.checks());
        checks.extend(self.engine.network_checks().await);
        checks
    }

    fn state(&self) -> Check {
        if self.warnings.is_empty() {
            let found = format!(
                "{} distributions in {}",
                self.engine.list(false).len(),
                self.paths.home.display()
            );
            return ok("state", found);
        }
        Check {
            name: "state".to_owned(),
            verdict: "error".to_owned(),
            found: self.warnings.join("; "),
            next_step: "put a good copy of the named file back, or move its directory away"
                .to_owned(),
        }
    }

    fn space(&self) -> Check {
        let Ok(space) = rustix::fs::statvfs(&self.paths.home) else {
            return warning(
                "space",
                "unknown".to_owned(),
                "look whether the state directory can be used",
            );
        };
        let free = Bytes(space.f_bavail.saturating_mul(space.f_frsize));
        let found = format!("{free} free for {}", self.paths.home.display());
        if free < LITTLE_SPACE {
            return warning(
                "space",
                found,
                "free some space, or set HOSTEL_HOME to a larger disk",
            );
        }
        ok("space", found)
    }

    fn memory(&self) -> Check {
        let resident = Bytes(resident_bytes());
        let found = format!("the daemon holds {resident}");
        if self.engine.is_idle() && resident > MUCH_MEMORY {
            return warning(
                "memory",
                found,
                "please report this with `hostel logs daemon`",
            );
        }
        ok("memory", found)
    }

    async fn kernel(&self) -> Check {
        let release = self.engine.kernel_next().await;
        if release.is_empty() {
            return Check {
                name: "kernel".to_owned(),
                verdict: "error".to_owned(),
                found: "none is installed".to_owned(),
                next_step: "hostel kernel install".to_owned(),
            };
        }
        ok("kernel", release)
    }
}

fn ok(name: &str, found: String) -> Check {
    Check {
        name: name.to_owned(),
        verdict: "ok".to_owned(),
        found,
        next_step: String::new(),
    }
}

fn warning(name: &str, found: String, next_step: &str) -> Check {
    Check {
        name: name.to_owned(),
        verdict: "warning".to_owned(),
        found,
        next_step: next_step.to_owned(),
    }
}

/// Returns the memory that this process holds, in bytes (proc(5), statm).
pub(super) fn resident_bytes() -> u64 {
    let statm = fs_err::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|p| p.parse().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
