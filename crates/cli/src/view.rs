//! Answers of the daemon as JSON. The names of the fields are part of the command line and do not change.

use hostel_proto::v1;
use serde_json::{Value, json};

/// A distribution as `list` and `inspect` show it.
pub(crate) fn distro(d: &v1::Distro) -> Value {
    json!({
        "id": d.id, "name": d.name, "state": d.state, "version": d.version, "default": d.is_default,
        "os": { "id": d.os_id, "version": d.os_version, "pretty_name": d.os_pretty_name },
        "created_unix": d.created_unix, "disk_bytes": d.disk_bytes, "base_bytes": d.base_bytes, "base": d.base,
        "sessions": d.sessions, "init_pid": d.init_pid, "default_user": d.default_user, "uptime_ms": d.uptime_ms,
        "source": d.source,
    })
}

/// A session.
pub(crate) fn session(s: &v1::Session) -> Value {
    json!({
        "id": s.id, "distro": s.distro, "pid": s.pid, "command": s.command, "user": s.user, "attached": s.attached,
        "started_unix": s.started_unix,
    })
}

/// A kernel.
pub(crate) fn kernel(k: &v1::Kernel) -> Value {
    json!({
        "release": k.release, "source": k.source, "in_use": k.in_use, "running": k.running, "bytes": k.bytes,
        "installed_unix": k.installed_unix, "sha256": k.sha256,
    })
}

/// A check of `doctor`.
pub(crate) fn check(c: &v1::Check) -> Value {
    json!({ "name": c.name, "verdict": c.verdict, "found": c.found, "next_step": c.next_step })
}

/// What came of a long task.
pub(crate) fn done(d: &v1::TaskDone) -> Value {
    json!({
        "distro": d.distro.as_ref().map(distro), "bytes": d.bytes, "base_shared": d.base_shared,
        "kernel": d.kernel.as_ref().map(kernel), "stopped": d.stopped,
    })
}

/// Everything that `inspect` shows.
pub(crate) fn inspect(r: &v1::InspectReply) -> Value {
    let namespaces: Vec<Value> = r
        .namespaces
        .iter()
        .map(|n| json!({ "kind": n.kind, "inode": n.inode, "shared": n.shared }))
        .collect();
    json!({
        "distro": r.distro.as_ref().map(distro), "directory": r.directory, "disk": r.disk, "base_path": r.base_path,
        "disk_limit_bytes": r.disk_limit_bytes, "disk_serial": r.disk_serial, "hostname": r.hostname,
        "namespaces": namespaces, "memory_bytes": r.memory_bytes, "processes": r.processes,
        "sessions": r.sessions.iter().map(session).collect::<Vec<_>>(),
    })
}

/// Everything that `status` shows.
pub(crate) fn status(r: &v1::StatusReply) -> Value {
    let vm = r.vm.as_ref().map(|v| {
        json!({
            "state": v.state, "accel": v.accel, "accel_reason": v.accel_reason, "qemu_pid": v.qemu_pid,
            "qemu_version": v.qemu_version, "machine": v.machine, "channel": v.channel, "memory_bytes": v.memory_bytes,
            "resident_bytes": v.resident_bytes, "cpus": v.cpus, "kernel_release": v.kernel_release,
            "uptime_ms": v.uptime_ms, "boot_ms": v.boot_ms, "last_end": v.last_end,
        })
    });
    let network = r.network.as_ref().map(|n| {
        json!({
            "backend": n.backend, "backend_reason": n.backend_reason, "subnet": n.subnet, "gateway": n.gateway,
            "address": n.address, "mac": n.mac, "dns": n.dns,
        })
    });
    json!({
        "version": r.version, "pid": r.pid, "resident_bytes": r.resident_bytes, "home": r.home,
        "runtime_dir": r.runtime_dir, "distros": r.distros, "running": r.running, "default_distro": r.default_distro,
        "kernel": r.kernel, "vm": vm, "network": network,
    })
}
