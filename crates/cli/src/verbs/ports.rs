//! `hostel ports …`: the port ledger, and the rules about which ports appear on the host.

use std::net::IpAddr;

use hostel_model::DistroName;
use hostel_proto::v1;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use tokio::sync::oneshot;

use crate::{
    args::{PortAction, PortRuleArgs, PortsArgs, PortsVerb},
    connect::{self, Age, Daemon, Start},
    surroundings::Context,
    text::{Table, printable},
    trouble::Trouble,
    view,
};

/// Does what `hostel ports` asks for.
pub(super) async fn ports(context: &Context, args: PortsArgs) -> Result<(), Trouble> {
    match args.verb {
        None if args.watch => watch(context).await,
        None => show(context).await,
        Some(PortsVerb::Rules) => policy(context, v1::PortPolicyRequest::default()).await,
        Some(PortsVerb::Set { which, action }) => {
            let (action, host_port) = match action {
                PortAction::Same => ("same", 0),
                PortAction::Off => ("off", 0),
                PortAction::Remap(port) => ("remap", port),
            };
            let rule = v1::PortRule {
                action: action.into(),
                host_port: host_port.into(),
                ..about(&which)
            };
            let request = v1::PortPolicyRequest {
                set: vec![rule],
                unset: Vec::new(),
            };
            policy(context, request).await
        }
        Some(PortsVerb::Unset { which }) => {
            let request = v1::PortPolicyRequest {
                set: Vec::new(),
                unset: vec![about(&which)],
            };
            policy(context, request).await
        }
    }
}

/// Shows the ledger once. Without a daemon there is no machine, and nothing listens.
async fn show(context: &Context) -> Result<(), Trouble> {
    let ports = match connect::find(&context.paths, Start::Never, Age::Compatible).await? {
        Some(mut daemon) => {
            let request = v1::PortsRequest { watch: false };
            let mut ledger = Daemon::answer(daemon.api.ports(request)).await?;
            ledger.message().await?.unwrap_or_default().ports
        }
        None => Vec::new(),
    };
    if context.printer.json {
        return context.printer.json(&view::ports(&ports));
    }
    print(context, &ports)
}

/// Shows the ledger again and again, until it is ended or nobody reads any more.
async fn watch(context: &Context) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let request = v1::PortsRequest { watch: true };
    let mut ledger = Daemon::answer(daemon.api.ports(request)).await?;
    let mut gone = reader_gone();
    let mut first = true;
    loop {
        let next = tokio::select! {
            next = ledger.message() => next?,
            _ = &mut gone => return Ok(()),
        };
        let Some(next) = next else { return Ok(()) };
        if context.printer.json {
            context.printer.json_line(&view::ports(&next.ports))?;
            continue;
        }
        if !first {
            context.printer.data("\n")?;
        }
        first = false;
        print(context, &next.ports)?;
    }
}

/// Returns what ends when the reader of stdout has gone, which a writer that waits for something else would not notice.
///
/// Waits on a thread, which is left behind and ends with the process.
fn reader_gone() -> oneshot::Receiver<()> {
    let (gone, wait) = oneshot::channel();
    std::thread::spawn(move || {
        // No event is asked for: what is left are errors and hang-ups, and a file has neither.
        let out = std::io::stdout();
        while let Err(Errno::INTR) = poll(&mut [PollFd::new(&out, PollFlags::empty())], None) {}
        let _ = gone.send(());
    });
    wait
}

fn print(context: &Context, ports: &[v1::Port]) -> Result<(), Trouble> {
    let printer = &context.printer;
    if ports.is_empty() {
        printer.say("no port listens");
        return Ok(());
    }
    printer.data(&table(ports, printer.width()))?;
    for port in ports.iter().filter(|p| !p.next_step.is_empty()) {
        printer.say(&format!(
            "next, for {} {} {}: {}",
            holder(port),
            port.protocol,
            port.guest_port,
            port.next_step
        ));
    }
    Ok(())
}

/// Returns whose port it is.
fn holder(port: &v1::Port) -> &str {
    if port.distro.is_empty() {
        "(machine)"
    } else {
        &port.distro
    }
}

/// Writes an address and a port, IPv6 in brackets.
fn endpoint(address: &str, port: u32) -> String {
    match address.parse() {
        Ok(IpAddr::V6(_)) => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
    }
}

fn table(ports: &[v1::Port], width: Option<usize>) -> String {
    let mut table = Table::new(&[
        "DISTRO", "PROTO", "GUEST", "PROCESS", "HOST", "STATE", "REASON",
    ]);
    for p in ports {
        let guest: Vec<String> = p
            .guest_address
            .split([',', ' '])
            .filter(|address| !address.is_empty())
            .map(|address| endpoint(address, p.guest_port))
            .collect();
        let process = match (p.process.as_str(), p.pid) {
            (name, 0) => name.to_owned(),
            ("", pid) => format!("pid {pid}"),
            (name, pid) => format!("{name} ({pid})"),
        };
        table.row([
            holder(p),
            &p.protocol,
            &guest.join(" "),
            &process,
            &p.host_addresses.join(" "),
            &p.state,
            &p.reason,
        ]);
    }
    table.render_within(width)
}

fn about(which: &PortRuleArgs) -> v1::PortRule {
    v1::PortRule {
        distro: which
            .distro
            .as_ref()
            .map(DistroName::to_string)
            .unwrap_or_default(),
        port: which.port.into(),
        protocol: if which.udp { "udp" } else { "tcp" }.into(),
        ..Default::default()
    }
}

/// Changes the rules when the request says so, and shows them.
async fn policy(context: &Context, request: v1::PortPolicyRequest) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(daemon.api.port_policy(request)).await?;
    let printer = &context.printer;
    if printer.json {
        return printer.json(&view::port_policy(&reply));
    }
    if reply.rules.is_empty() {
        printer.say("no rule is set: TCP ports appear under the same number, UDP ports do not");
    } else {
        printer.data(&rules_table(&reply.rules))?;
    }
    printer.say(&if reply.forwarding {
        format!("the relay listens on {}", printable(&reply.listen))
    } else {
        "the relay is off: localhostForwarding=false in the configuration".to_owned()
    });
    Ok(())
}

fn rules_table(rules: &[v1::PortRule]) -> String {
    let mut table = Table::new(&["DISTRO", "PROTO", "PORT", "ACTION"]);
    for rule in rules {
        let every = |text: &str| {
            if text.is_empty() {
                "(all)".to_owned()
            } else {
                text.to_owned()
            }
        };
        let port = crate::text::number(rule.port);
        let action = match (rule.action.as_str(), rule.host_port) {
            ("remap", 0) => "remap to the next free port".to_owned(),
            ("remap", port) => format!("remap={port}"),
            (action, _) => action.to_owned(),
        };
        let protocol = if rule.protocol.is_empty() {
            "tcp"
        } else {
            &rule.protocol
        };
        table.row([&every(&rule.distro), protocol, &every(&port), &action]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_who_listens_and_where_it_is_found() {
        let web = v1::Port {
            distro: "trixie".into(),
            protocol: "tcp".into(),
            guest_address: "0.0.0.0".into(),
            guest_port: 80,
            pid: 17,
            process: "nginx".into(),
            host_addresses: vec!["127.0.0.1:8080".into(), "[::1]:8080".into()],
            state: "remapped".into(),
            reason: "port 80 needs rights that this user has not".into(),
            ..Default::default()
        };
        let machine = v1::Port {
            distro: String::new(),
            guest_address: "::1".into(),
            guest_port: 53,
            pid: 0,
            process: String::new(),
            host_addresses: Vec::new(),
            state: "off".into(),
            reason: String::new(),
            ..web.clone()
        };
        assert_eq!(endpoint("::", 80), "[::]:80");
        assert_eq!(
            table(&[web, machine], Some(100)),
            "DISTRO     PROTO  GUEST       PROCESS     HOST                       STATE     REASON\n\
             trixie     tcp    0.0.0.0:80  nginx (17)  127.0.0.1:8080 [::1]:8080  remapped  port 80 needs rights\n\
             \x20                                                                              that this user has not\n\
             (machine)  tcp    [::1]:53                                           off\n"
        );
    }

    #[test]
    fn rules_say_what_they_are_about() {
        let rule = |distro: &str, port, action: &str, host_port| v1::PortRule {
            distro: distro.into(),
            port,
            protocol: String::new(),
            action: action.into(),
            host_port,
        };
        assert_eq!(
            rules_table(&[
                rule("", 80, "remap", 8080),
                rule("trixie", 0, "off", 0),
                rule("", 22, "remap", 0)
            ]),
            "DISTRO  PROTO  PORT   ACTION\n\
             (all)   tcp    80     remap=8080\n\
             trixie  tcp    (all)  off\n\
             (all)   tcp    22     remap to the next free port\n"
        );
    }
}
