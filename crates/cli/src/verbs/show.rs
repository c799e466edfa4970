//! Verbs that only look: status, inspect, sessions.

use hostel_model::Bytes;
use hostel_proto::v1;

use crate::{
    args::InspectArgs,
    connect::{self, Daemon},
    surroundings::Context,
    text::{Facts, Table, clock, lasted, number, with},
    trouble::Trouble,
    view,
};

/// Returns a size, or nothing when it is not known.
fn size(bytes: u64) -> String {
    if bytes == 0 {
        String::new()
    } else {
        Bytes(bytes).to_string()
    }
}

/// `hostel status`.
pub(super) async fn status(context: &Context) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(daemon.api.status(v1::StatusRequest {})).await?;
    if context.printer.json {
        return context.printer.json(&view::status(&reply));
    }
    context.printer.data(&status_text(&reply))
}

fn status_text(reply: &v1::StatusReply) -> String {
    let mut facts = Facts::default();
    let memory = size(reply.resident_bytes);
    facts.add(
        "daemon",
        with(
            &format!("hosteld {}, pid {}", reply.version, reply.pid),
            &memory,
        ),
    );
    facts.add("state", reply.home.clone());
    facts.add("runtime", reply.runtime_dir.clone());
    facts.add(
        "distributions",
        format!("{} registered, {} running", reply.distros, reply.running),
    );
    facts.add("default", reply.default_distro.clone());
    facts.add(
        "next kernel",
        if reply.kernel.is_empty() {
            "none installed; run `hostel kernel install`"
        } else {
            &reply.kernel
        },
    );
    if let Some(vm) = &reply.vm {
        let up = if vm.state == "running" {
            format!("for {}", lasted(vm.uptime_ms))
        } else {
            String::new()
        };
        facts.add("machine", with(&vm.state, &up));
        facts.add("accelerator", with(&vm.accel, &vm.accel_reason));
        let pid = if vm.qemu_pid == 0 {
            String::new()
        } else {
            format!("pid {}", vm.qemu_pid)
        };
        let qemu = [vm.qemu_version.as_str(), vm.machine.as_str()].join(" ");
        facts.add("qemu", with(qemu.trim(), &pid));
        facts.add("channel", vm.channel.clone());
        let held = if vm.resident_bytes == 0 {
            String::new()
        } else {
            format!("{} held now", Bytes(vm.resident_bytes))
        };
        facts.add("memory", with(&size(vm.memory_bytes), &held));
        facts.add("cpus", with(&number(vm.cpus), &vm.cpus_reason));
        facts.add("kernel", vm.kernel_release.clone());
        facts.add(
            "boot took",
            if vm.boot_ms == 0 {
                String::new()
            } else {
                lasted(vm.boot_ms)
            },
        );
        facts.add("last end", vm.last_end.clone());
    }
    if let Some(net) = &reply.network {
        network_facts(&mut facts, net);
    }
    facts.render()
}

/// The network in a few lines; `hostel net` tells the rest.
fn network_facts(facts: &mut Facts, net: &v1::NetworkStatus) {
    facts.add("network", with(&net.backend, &net.backend_reason));
    facts.add("mode", net.mode.clone());
    facts.add("address", with(&net.address, &net.subnet));
    facts.add("gateway", with(&net.gateway, &on(&net.bridge)));
    facts.add("mac", net.mac.clone());
    facts.add("mtu", number(net.mtu));
    facts.add("ipv6", net.ipv6.clone());
    facts.add("dns", net.dns.join(" "));
}

/// Says which interface holds an address.
pub(super) fn on(interface: &str) -> String {
    if interface.is_empty() {
        String::new()
    } else {
        format!("on {interface}")
    }
}

/// `hostel inspect`.
pub(super) async fn inspect(context: &Context, args: InspectArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(daemon.api.inspect(v1::InspectRequest {
        name: args.which.for_wire(),
    }))
    .await?;
    if context.printer.json {
        return context.printer.json(&view::inspect(&reply));
    }
    context.printer.data(&inspect_text(&reply))
}

fn inspect_text(reply: &v1::InspectReply) -> String {
    let mut facts = Facts::default();
    if let Some(d) = &reply.distro {
        facts.add(
            "name",
            with(&d.name, if d.is_default { "default" } else { "" }),
        );
        facts.add("id", d.id.clone());
        let up = if d.state == "running" {
            format!("for {}", lasted(d.uptime_ms))
        } else {
            String::new()
        };
        facts.add("state", with(&d.state, &up));
        facts.add("version", number(d.version));
        facts.add(
            "system",
            with(
                &d.os_pretty_name,
                [d.os_id.as_str(), d.os_version.as_str()].join(" ").trim(),
            ),
        );
        facts.add("made from", d.source.clone());
        facts.add("created", clock(d.created_unix));
        facts.add("default user", d.default_user.clone());
        facts.add(
            "init",
            if d.init_pid == 0 {
                String::new()
            } else {
                format!("pid {} in the machine", d.init_pid)
            },
        );
        facts.add("disk used", size(d.disk_bytes));
        facts.add("base used", size(d.base_bytes));
        facts.add("base", d.base.clone());
    }
    facts.add("hostname", reply.hostname.clone());
    facts.add("network", with(&reply.network, &reply.address));
    facts.add("directory", reply.directory.clone());
    facts.add("disk", with(&reply.disk, &reply.disk_serial));
    facts.add("base image", reply.base_path.clone());
    facts.add("disk limit", size(reply.disk_limit_bytes));
    facts.add("memory", size(reply.memory_bytes));
    facts.add("processes", number(reply.processes));
    let mut out = facts.render();
    if !reply.namespaces.is_empty() {
        let mut table = Table::new(&["NAMESPACE", "INODE", "SHARED"]);
        for n in &reply.namespaces {
            let shared = if n.shared { "with the machine" } else { "no" };
            table.row([n.kind.as_str(), &n.inode.to_string(), shared]);
        }
        out.push('\n');
        out.push_str(&table.render());
    }
    if !reply.sessions.is_empty() {
        out.push('\n');
        out.push_str(&sessions_text(&reply.sessions));
    }
    out
}

/// `hostel sessions`.
pub(super) async fn sessions(context: &Context) -> Result<(), Trouble> {
    // Without a daemon there is no session.
    let found = connect::find(
        &context.paths,
        connect::Start::Never,
        connect::Age::Compatible,
    )
    .await?;
    let sessions = match found {
        Some(mut daemon) => {
            Daemon::answer(daemon.api.list_sessions(v1::ListSessionsRequest {}))
                .await?
                .sessions
        }
        None => Vec::new(),
    };
    if context.printer.json {
        return context
            .printer
            .json(&sessions.iter().map(view::session).collect::<Vec<_>>());
    }
    if sessions.is_empty() {
        context.printer.say("no session runs");
        return Ok(());
    }
    context.printer.data(&sessions_text(&sessions))
}

fn sessions_text(sessions: &[v1::Session]) -> String {
    let mut table = Table::new(&[
        "SESSION",
        "DISTRIBUTION",
        "USER",
        "PID",
        "STARTED",
        "ATTACHED",
        "COMMAND",
    ]);
    for s in sessions {
        let attached = if s.attached { "yes" } else { "no" };
        table.row([
            &s.id,
            &s.distro,
            &s.user,
            &s.pid.to_string(),
            &clock(s.started_unix),
            attached,
            &s.command,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_shows_what_is_known_and_nothing_else() {
        let mut reply = v1::StatusReply {
            version: "0.1.0".into(),
            pid: 7,
            distros: 2,
            running: 1,
            ..Default::default()
        };
        assert_eq!(
            status_text(&reply),
            "daemon         hosteld 0.1.0, pid 7\n\
             distributions  2 registered, 1 running\n\
             next kernel    none installed; run `hostel kernel install`\n"
        );
        reply.kernel = "6.1.0".into();
        reply.vm = Some(v1::VmStatus {
            state: "running".into(),
            accel: "tcg".into(),
            accel_reason: "the CPU shows no vmx or svm".into(),
            uptime_ms: 61_000,
            memory_bytes: 4 << 30,
            resident_bytes: 200 << 20,
            cpus: 1,
            cpus_reason: "they take turns".into(),
            ..Default::default()
        });
        let text = status_text(&reply);
        assert!(text.contains("machine        running (for 1m 1s)\naccelerator    tcg (the CPU shows no vmx or svm)\n"), "{text}");
        assert!(
            text.contains("memory         4.0 GiB (200 MiB held now)\n"),
            "{text}"
        );
        assert!(
            text.contains("cpus           1 (they take turns)\n"),
            "{text}"
        );
        assert!(!text.contains("qemu"), "{text}");
    }

    #[test]
    fn inspect_shows_which_namespaces_are_shared() {
        let reply = v1::InspectReply {
            distro: Some(v1::Distro {
                name: "a".into(),
                state: "stopped".into(),
                ..Default::default()
            }),
            namespaces: vec![
                v1::Namespace {
                    kind: "pid".into(),
                    inode: 5,
                    shared: false,
                },
                v1::Namespace {
                    kind: "net".into(),
                    inode: 4_026_531_840,
                    shared: true,
                },
            ],
            ..Default::default()
        };
        assert_eq!(
            inspect_text(&reply),
            "name   a\nstate  stopped\n\n\
             NAMESPACE  INODE       SHARED\npid        5           no\nnet        4026531840  with the machine\n"
        );
    }
}
