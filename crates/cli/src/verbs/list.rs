//! `hostel list`.

use hostel_model::Bytes;
use hostel_proto::v1::{self, Distro};

use crate::{
    args::ListArgs,
    connect::{self, Daemon},
    surroundings::Context,
    text::{Table, printable, with},
    trouble::Trouble,
    view,
};

/// Lists the distributions, the default one first (LIST-1).
pub(super) async fn list(context: &Context, args: ListArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(daemon.api.list(v1::ListRequest {
        running_only: args.running,
    }))
    .await?;
    let printer = &context.printer;
    if printer.json {
        return printer.json(&reply.distros.iter().map(view::distro).collect::<Vec<_>>());
    }
    if reply.distros.is_empty() {
        if args.running {
            printer.say("no distribution runs");
        } else {
            printer.say("no distribution is registered; try `hostel install debian:trixie` or `hostel import NAME FILE`");
        }
        return Ok(());
    }
    printer.data(&if args.verbose {
        verbose(&reply.distros)
    } else {
        plain(&reply.distros, !printer.quiet)
    })
}

/// One name a line (LIST-3), the default marked on wish (LIST-2).
fn plain(distros: &[Distro], mark: bool) -> String {
    let mut out = String::new();
    for d in distros {
        out.push_str(&printable(&d.name));
        out.push_str(if mark && d.is_default {
            " (Default)\n"
        } else {
            "\n"
        });
    }
    out
}

/// The columns of the reference (LIST-6), and four of ours.
fn verbose(distros: &[Distro]) -> String {
    let mut table = Table::new(&[
        "  NAME", "STATE", "VERSION", "OS", "DISK", "BASE", "NETWORK",
    ]);
    for d in distros {
        let mark = if d.is_default { '*' } else { ' ' };
        let os = if d.os_pretty_name.is_empty() {
            &d.os_id
        } else {
            &d.os_pretty_name
        };
        table.row([
            format!("{mark} {}", d.name),
            state(&d.state),
            d.version.to_string(),
            os.clone(),
            Bytes(d.disk_bytes).to_string(),
            Bytes(d.base_bytes).to_string(),
            with(&d.network, &d.address),
        ]);
    }
    table.render()
}

/// Writes a state as the reference does, with a capital.
fn state(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distros() -> [Distro; 2] {
        let debian = Distro {
            name: "trixie".into(),
            state: "running".into(),
            version: 2,
            is_default: true,
            os_pretty_name: "Debian GNU/Linux 13 (trixie)".into(),
            disk_bytes: 3 << 20,
            base_bytes: 200 << 20,
            network: "own".into(),
            address: "172.19.133.7".into(),
            ..Distro::default()
        };
        let evil = Distro {
            name: "b".into(),
            state: "stopped".into(),
            version: 2,
            os_id: "x\x1b[2J".into(),
            ..Distro::default()
        };
        [debian, evil]
    }

    /// LIST-2, LIST-6.
    #[test]
    fn lists_look_as_in_the_reference() {
        assert_eq!(plain(&distros(), true), "trixie (Default)\nb\n");
        assert_eq!(plain(&distros(), false), "trixie\nb\n");
        let want = "  NAME    STATE    VERSION  OS                            DISK     BASE     NETWORK\n\
                    * trixie  Running  2        Debian GNU/Linux 13 (trixie)  3.0 MiB  200 MiB  own (172.19.133.7)\n  \
                      b       Stopped  2        x\\u{1b}[2J                    0 B      0 B\n";
        assert_eq!(verbose(&distros()), want);
    }
}
