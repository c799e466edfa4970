//! The verbs of `hostel net` that only look.

use hostel_proto::v1;

use crate::{
    connect::{self, Daemon},
    printer::Tone,
    surroundings::Context,
    text::{Facts, Table, number, printable, with, wrap},
    trouble::Trouble,
    verbs::show::on,
    view,
};

async fn ask(context: &Context) -> Result<v1::NetworkReply, Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    Daemon::answer(daemon.api.network(v1::NetworkRequest {})).await
}

/// `hostel net show`.
pub(super) async fn show(context: &Context) -> Result<(), Trouble> {
    let reply = ask(context).await?;
    print(context, &reply)
}

/// Prints everything about the network.
pub(super) fn print(context: &Context, reply: &v1::NetworkReply) -> Result<(), Trouble> {
    let printer = &context.printer;
    for warning in &reply.warnings {
        printer.warn(warning);
    }
    if printer.json {
        return printer.json(&view::network(reply));
    }
    printer.data(&show_text(reply, printer.width(), |heading| {
        printer.paint(heading, Tone::Heading)
    }))
}

fn show_text(
    reply: &v1::NetworkReply,
    width: Option<usize>,
    heading: impl Fn(&str) -> String,
) -> String {
    let status = reply.status.clone().unwrap_or_default();
    let mut facts = Facts::default();
    facts.add("name", with(&reply.name, &reply.r#type));
    facts.add("id", reply.id.clone());
    facts.add("subnet", with(&status.subnet, &range(reply)));
    facts.add("gateway", with(&status.gateway, &on(&status.bridge)));
    facts.add("machine", with(&status.address, &status.mac));
    facts.add("mode", status.mode.clone());
    facts.add("backend", with(&status.backend, &status.backend_reason));
    facts.add("mtu", number(status.mtu));
    facts.add(
        "ipv6",
        if status.ipv6.is_empty() {
            "link-local only"
        } else {
            &status.ipv6
        },
    );
    facts.add("dns", status.dns.join(" "));
    facts.add("stored in", reply.stored_in.clone());
    let mut out = facts.render();
    if !reply.guests.is_empty() {
        out.extend(["\n", &guests(&reply.guests)]);
    }
    if !reply.backends.is_empty() {
        out.extend(["\n", &verdicts(&reply.backends, width)]);
    }
    if !status.reach.is_empty() {
        out.extend(["\n", &heading("Who reaches whom"), "\n"]);
        for sentence in &status.reach {
            let sentence = printable(&sentence.replace('\n', " ")).into_owned();
            let room = width.map_or(usize::MAX, |w| w.saturating_sub(4));
            out.extend(["  ", &wrap(&sentence, room).join("\n    "), "\n"]);
        }
    }
    out
}

/// Says what lies in the subnet.
fn range(reply: &v1::NetworkReply) -> String {
    if reply.hosts == 0 {
        return String::new();
    }
    format!(
        "{} to {}, {} hosts",
        reply.first_host, reply.last_host, reply.hosts
    )
}

fn guests(guests: &[v1::NetworkGuest]) -> String {
    let mut table = Table::new(&[
        "DISTRO",
        "NETWORK",
        "ADDRESS",
        "ON THIS HOST",
        "HOST NAME",
        "STATE",
    ]);
    for g in guests {
        let local = if g.local_address.is_empty() {
            "localhost"
        } else {
            &g.local_address
        };
        let state = if g.running { "running" } else { "stopped" };
        table.row([
            g.distro.as_str(),
            &g.network,
            &g.address,
            local,
            &g.host_name,
            state,
        ]);
    }
    table.render()
}

fn verdicts(backends: &[v1::BackendVerdict], width: Option<usize>) -> String {
    let mut table = Table::new(&["  BACKEND", "WHY"]);
    for b in backends {
        let mark = if b.chosen { '*' } else { ' ' };
        table.row([&format!("{mark} {}", b.name), &b.reason]);
    }
    table.render_within(width)
}

/// `hostel net list`.
pub(super) async fn list(context: &Context) -> Result<(), Trouble> {
    let reply = ask(context).await?;
    for warning in &reply.warnings {
        context.printer.warn(warning);
    }
    if context.printer.json {
        return context.printer.json(&[view::network(&reply)]);
    }
    context.printer.data(&list_text(&reply))
}

fn list_text(reply: &v1::NetworkReply) -> String {
    let status = reply.status.clone().unwrap_or_default();
    let mut table = Table::new(&[
        "NAME",
        "TYPE",
        "SUBNET",
        "FIRST",
        "LAST",
        "HOSTS",
        "GATEWAY",
        "INTERFACE",
        "MACHINE",
        "BACKEND",
        "ID",
    ]);
    table.row([
        reply.name.as_str(),
        &reply.r#type,
        &status.subnet,
        &reply.first_host,
        &reply.last_host,
        &number(reply.hosts),
        &status.gateway,
        &status.bridge,
        &status.address,
        &status.backend,
        &reply.id,
    ]);
    let mut out = table.render();
    if !reply.guests.is_empty() {
        out.extend(["\n", &guests(&reply.guests)]);
    }
    out
}

/// `hostel net adapters`.
pub(super) async fn adapters(context: &Context) -> Result<(), Trouble> {
    let reply = ask(context).await?;
    let printer = &context.printer;
    if printer.json {
        return printer.json(&reply.adapters.iter().map(view::adapter).collect::<Vec<_>>());
    }
    if reply.adapters.is_empty() {
        printer.say("there is no adapter: the machine is off, or its network is off");
        return Ok(());
    }
    printer.data(&adapters_text(&reply.adapters))
}

fn adapters_text(adapters: &[v1::Adapter]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "KIND",
        "SWITCH",
        "ADDRESSES",
        "MAC",
        "MTU",
        "STATE",
        "WHERE",
    ]);
    for a in adapters {
        table.row([
            a.name.as_str(),
            &a.kind,
            &a.switch,
            &a.addresses.join(", "),
            &a.mac,
            &number(a.mtu),
            &a.state,
            &a.r#where,
        ]);
    }
    table.render()
}

/// `hostel net backends`.
pub(super) async fn backends(context: &Context) -> Result<(), Trouble> {
    let reply = ask(context).await?;
    let printer = &context.printer;
    if printer.json {
        return printer.json(&reply.backends.iter().map(view::backend).collect::<Vec<_>>());
    }
    printer.data(&verdicts(&reply.backends, printer.width()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> v1::NetworkReply {
        let guest = |distro: &str, network: &str, address: &str, local: &str| v1::NetworkGuest {
            distro: distro.into(),
            network: network.into(),
            address: address.into(),
            local_address: local.into(),
            host_name: format!("{distro}.hostel"),
            running: network == "own",
        };
        v1::NetworkReply {
            status: Some(v1::NetworkStatus {
                backend: "root".into(),
                backend_reason: "this is root".into(),
                subnet: "172.19.128.0/20".into(),
                gateway: "172.19.128.1".into(),
                address: "172.19.132.144".into(),
                mac: "52:54:00:00:00:01".into(),
                mode: "nat".into(),
                bridge: "hostel0".into(),
                mtu: 1500,
                reach: vec!["the machine reaches the host\u{7}".into()],
                ..Default::default()
            }),
            id: "7f1c".into(),
            name: "hostel".into(),
            r#type: "NAT".into(),
            first_host: "172.19.128.1".into(),
            last_host: "172.19.143.254".into(),
            hosts: 4094,
            stored_in: "/h/registry.json".into(),
            guests: vec![
                guest("trixie", "shared", "172.19.132.144", ""),
                guest("db", "own", "172.19.133.7", "127.19.133.7"),
            ],
            backends: vec![
                v1::BackendVerdict {
                    name: "root".into(),
                    chosen: true,
                    reason: "this is root".into(),
                },
                v1::BackendVerdict {
                    name: "passt".into(),
                    chosen: false,
                    reason: "not needed".into(),
                },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn the_network_is_told_as_one_looks_for_it() {
        assert_eq!(
            show_text(&reply(), None, str::to_owned),
            "name       hostel (NAT)\n\
             id         7f1c\n\
             subnet     172.19.128.0/20 (172.19.128.1 to 172.19.143.254, 4094 hosts)\n\
             gateway    172.19.128.1 (on hostel0)\n\
             machine    172.19.132.144 (52:54:00:00:00:01)\n\
             mode       nat\n\
             backend    root (this is root)\n\
             mtu        1500\n\
             ipv6       link-local only\n\
             stored in  /h/registry.json\n\
             \n\
             DISTRO  NETWORK  ADDRESS         ON THIS HOST  HOST NAME      STATE\n\
             trixie  shared   172.19.132.144  localhost     trixie.hostel  stopped\n\
             db      own      172.19.133.7    127.19.133.7  db.hostel      running\n\
             \n  \
               BACKEND  WHY\n\
             * root     this is root\n  \
               passt    not needed\n\
             \n\
             Who reaches whom\n  \
               the machine reaches the host\\u{7}\n"
        );
        let narrow = show_text(&reply(), Some(24), str::to_owned);
        assert!(
            narrow.ends_with("\n  the machine reaches\n    the host\\u{7}\n"),
            "{narrow}"
        );
        // A network that is off has little to tell.
        assert_eq!(
            show_text(&v1::NetworkReply::default(), None, str::to_owned),
            "ipv6  link-local only\n"
        );
    }

    #[test]
    fn one_line_a_network() {
        let text = list_text(&reply());
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "hostel  NAT   172.19.128.0/20  172.19.128.1  172.19.143.254  4094   172.19.128.1  hostel0    172.19.132.144  root     7f1c"
        );
        assert!(text.contains("\n\nDISTRO "), "{text}");
    }

    #[test]
    fn adapters_show_their_switch() {
        let tap = v1::Adapter {
            name: "hostel0-tap".into(),
            kind: "tap".into(),
            switch: "hostel0".into(),
            mtu: 1500,
            state: "up".into(),
            r#where: "host".into(),
            ..Default::default()
        };
        let bridge = v1::Adapter {
            name: "hostel0".into(),
            kind: "bridge".into(),
            mac: "52:54:00:00:00:02".into(),
            addresses: vec!["172.19.128.1/20".into(), "fe80::1/64".into()],
            ..tap.clone()
        };
        let bridge = v1::Adapter {
            switch: String::new(),
            ..bridge
        };
        assert_eq!(
            adapters_text(&[bridge, tap]),
            "NAME         KIND    SWITCH   ADDRESSES                    MAC                MTU   STATE  WHERE\n\
             hostel0      bridge           172.19.128.1/20, fe80::1/64  52:54:00:00:00:02  1500  up     host\n\
             hostel0-tap  tap     hostel0                                                  1500  up     host\n"
        );
    }
}
