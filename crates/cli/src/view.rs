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
        "source": d.source, "network": d.network, "address": d.address,
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
        "network": r.network, "address": r.address,
    })
}

/// Everything that `status` shows.
pub(crate) fn status(r: &v1::StatusReply) -> Value {
    let vm = r.vm.as_ref().map(|v| {
        json!({
            "state": v.state, "accel": v.accel, "accel_reason": v.accel_reason, "qemu_pid": v.qemu_pid,
            "qemu_version": v.qemu_version, "machine": v.machine, "channel": v.channel, "memory_bytes": v.memory_bytes,
            "resident_bytes": v.resident_bytes, "cpus": v.cpus, "cpus_reason": v.cpus_reason,
            "kernel_release": v.kernel_release, "uptime_ms": v.uptime_ms, "boot_ms": v.boot_ms, "last_end": v.last_end,
        })
    });
    json!({
        "version": r.version, "pid": r.pid, "resident_bytes": r.resident_bytes, "home": r.home,
        "runtime_dir": r.runtime_dir, "distros": r.distros, "running": r.running, "default_distro": r.default_distro,
        "kernel": r.kernel, "vm": vm,
        "network": r.network.as_ref().map(network_status),
    })
}

/// The network's state.
fn network_status(n: &v1::NetworkStatus) -> Value {
    json!({
        "backend": n.backend, "backend_reason": n.backend_reason, "subnet": n.subnet, "gateway": n.gateway,
        "address": n.address, "mac": n.mac, "dns": n.dns, "mode": n.mode, "bridge": n.bridge, "mtu": n.mtu,
        "ipv6": n.ipv6, "reach": n.reach,
    })
}

/// Everything that `net show` shows.
pub(crate) fn network(r: &v1::NetworkReply) -> Value {
    let guests: Vec<Value> = r
        .guests
        .iter()
        .map(|g| {
            json!({
                "distro": g.distro, "network": g.network, "address": g.address, "local_address": g.local_address,
                "host_name": g.host_name, "running": g.running,
            })
        })
        .collect();
    json!({
        "id": r.id, "name": r.name, "type": r.r#type, "first_host": r.first_host, "last_host": r.last_host,
        "hosts": r.hosts, "stored_in": r.stored_in, "status": r.status.as_ref().map(network_status),
        "guests": guests, "adapters": r.adapters.iter().map(adapter).collect::<Vec<_>>(),
        "backends": r.backends.iter().map(backend).collect::<Vec<_>>(), "warnings": r.warnings,
    })
}

/// An interface of the host's side.
pub(crate) fn adapter(a: &v1::Adapter) -> Value {
    json!({
        "name": a.name, "kind": a.kind, "mac": a.mac, "addresses": a.addresses, "mtu": a.mtu, "state": a.state,
        "switch": a.switch, "where": a.r#where,
    })
}

/// A way to carry the network.
pub(crate) fn backend(b: &v1::BackendVerdict) -> Value {
    json!({ "name": b.name, "chosen": b.chosen, "reason": b.reason })
}

/// The firewall.
pub(crate) fn firewall(r: &v1::FirewallReply) -> Value {
    let rules: Vec<Value> = r
        .rules
        .iter()
        .map(|f| {
            json!({
                "number": f.number, "action": f.action, "protocol": f.protocol, "first_port": f.first_port,
                "last_port": f.last_port, "source": f.source,
            })
        })
        .collect();
    json!({ "rules": rules, "default": r.default_action, "in_force": r.in_force, "advice": r.advice })
}

/// The port ledger.
pub(crate) fn ports(ports: &[v1::Port]) -> Value {
    json!({ "ports": ports.iter().map(port).collect::<Vec<_>>() })
}

fn port(p: &v1::Port) -> Value {
    json!({
        "distro": p.distro, "protocol": p.protocol, "guest_address": p.guest_address, "guest_port": p.guest_port,
        "pid": p.pid, "process": p.process, "host_addresses": p.host_addresses, "state": p.state, "reason": p.reason,
        "network": p.network, "next_step": p.next_step, "connections": p.connections,
    })
}

/// The relay's policy.
pub(crate) fn port_policy(r: &v1::PortPolicyReply) -> Value {
    let rules: Vec<Value> = r
        .rules
        .iter()
        .map(|p| {
            json!({
                "distro": p.distro, "port": p.port, "protocol": p.protocol, "action": p.action, "host_port": p.host_port,
            })
        })
        .collect();
    json!({ "rules": rules, "listen": r.listen, "forwarding": r.forwarding })
}

/// The settings of a distribution.
pub(crate) fn managed(r: &v1::ManageReply) -> Value {
    json!({ "network": r.network, "address": r.address, "restart_needed": r.restart_needed })
}
