//! `hostel net firewall …`.

use hostel_model::firewall::{Rule, RuleError};
use hostel_proto::v1;

use crate::{
    args::{FirewallArgs, FirewallVerb},
    connect::{self, Daemon},
    surroundings::Context,
    text::Table,
    trouble::Trouble,
    view,
};

/// Changes the rules when a verb says so, and shows them.
pub(super) async fn firewall(context: &Context, args: FirewallArgs) -> Result<(), Trouble> {
    let mut request = v1::FirewallRequest::default();
    match args.verb.unwrap_or(FirewallVerb::List) {
        FirewallVerb::List => {}
        FirewallVerb::Add { rule } => request.add.push(parse(&rule.join(" "))?),
        FirewallVerb::Rm { number } => request.remove = number,
        FirewallVerb::Clear => request.clear = true,
    }
    let mut daemon = connect::connect(&context.paths).await?;
    let reply = Daemon::answer(daemon.api.firewall(request)).await?;
    let printer = &context.printer;
    for advice in &reply.advice {
        printer.warn(advice);
    }
    if printer.json {
        return printer.json(&view::firewall(&reply));
    }
    if reply.rules.is_empty() {
        printer.say("no rule is set: only this host reaches the machine");
    } else {
        printer.data(&table(&reply))?;
    }
    if !reply.in_force {
        printer.say("no network runs; the rules hold from the machine's next start on");
    }
    Ok(())
}

/// Reads a rule as it is written, and returns it as the contract wants it.
fn parse(text: &str) -> Result<v1::FirewallRule, Trouble> {
    let rule: Rule = text
        .parse()
        .map_err(|e: RuleError| Trouble::Usage(e.to_string()))?;
    let (first, last) = rule.ports.unwrap_or_default();
    Ok(v1::FirewallRule {
        number: 0,
        action: rule.action.as_str().into(),
        protocol: rule.protocol.as_str().into(),
        first_port: first.into(),
        last_port: last.into(),
        source: rule.source.map(|s| s.to_string()).unwrap_or_default(),
    })
}

fn table(reply: &v1::FirewallReply) -> String {
    let mut table = Table::new(&["NR", "ACTION", "PROTO", "PORTS", "FROM"]);
    let every = |text: &str| {
        if text.is_empty() {
            "any".to_owned()
        } else {
            text.to_owned()
        }
    };
    for rule in &reply.rules {
        let ports = match (rule.first_port, rule.last_port) {
            (0, _) => String::new(),
            (first, last) if first == last || last == 0 => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        table.row([
            &rule.number.to_string(),
            &rule.action,
            &rule.protocol,
            &every(&ports),
            &every(&rule.source),
        ]);
    }
    table.row(["", reply.default_action.as_str(), "any", "any", "any"]);
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_they_are_read() {
        let rule = parse("allow tcp 3000-3010 from 192.168.0.0/16").unwrap();
        assert_eq!(
            (rule.first_port, rule.last_port, rule.source.as_str()),
            (3000, 3010, "192.168.0.0/16")
        );
        let icmp = parse("deny icmp").unwrap();
        assert_eq!((icmp.first_port, icmp.source.as_str()), (0, ""));
        let reply = v1::FirewallReply {
            rules: vec![
                v1::FirewallRule { number: 1, ..rule },
                v1::FirewallRule { number: 2, ..icmp },
            ],
            default_action: "deny".into(),
            ..Default::default()
        };
        assert_eq!(
            table(&reply),
            "NR  ACTION  PROTO  PORTS      FROM\n\
             1   allow   tcp    3000-3010  192.168.0.0/16\n\
             2   deny    icmp   any        any\n    \
                 deny    any    any        any\n"
        );
        let Err(Trouble::Usage(text)) = parse("allow tpc 80") else {
            panic!("no protocol has that name")
        };
        assert!(text.contains("`tpc` is no protocol"), "{text}");
    }
}
