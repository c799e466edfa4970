//! `hostel doctor`.

use hostel_proto::v1::{self, Check};
use serde_json::json;

use super::host_checks;
use crate::{
    connect::{self, Daemon},
    printer::{Printer, Tone},
    surroundings::Context,
    text::printable,
    trouble::Trouble,
    view,
};

/// Checks the host from here, then asks the daemon, whose answers are the better ones; exit status 1 for an error.
pub(super) async fn doctor(context: &Context) -> Result<u8, Trouble> {
    let mut checks = host_checks::all(&context.paths);
    let answers = match connect::connect(&context.paths).await {
        Ok(mut daemon) => {
            let greeting = format!(
                "{} runs, pid {}",
                daemon.greeting.version, daemon.greeting.pid
            );
            checks.push(host_checks::ok("daemon", greeting));
            Daemon::answer(daemon.api.doctor(v1::DoctorRequest {}))
                .await
                .map(|r| r.checks)
        }
        Err(trouble) => Err(trouble),
    };
    match answers {
        Ok(answers) => merge(&mut checks, answers),
        Err(Trouble::Failure(f)) => {
            let check = host_checks::error(
                "daemon",
                f.message,
                f.hints.first().cloned().unwrap_or_default(),
            );
            merge(&mut checks, vec![check]);
        }
        Err(trouble) => return Err(trouble),
    }
    let bad = checks.iter().any(|c| c.verdict == "error");
    if context.printer.json {
        context.printer.json(
            &json!({ "ok": !bad, "checks": checks.iter().map(view::check).collect::<Vec<_>>() }),
        )?;
    } else {
        context.printer.data(&render(&context.printer, &checks))?;
    }
    Ok(u8::from(bad))
}

/// Puts the daemon's checks in the place of ours of the same name, and the others behind. It may have several of one name.
fn merge(checks: &mut Vec<Check>, answers: Vec<Check>) {
    checks.retain(|ours| answers.iter().all(|answer| answer.name != ours.name));
    checks.extend(answers);
}

fn render(printer: &Printer, checks: &[Check]) -> String {
    let width = checks
        .iter()
        .map(|c| c.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let tone = match check.verdict.as_str() {
            "ok" => Tone::Good,
            "warning" => Tone::Odd,
            "error" => Tone::Bad,
            _ => Tone::Plain,
        };
        let verdict = printer.paint(&format!("{:7}", printable(&check.verdict)), tone);
        let name = printer.paint(&format!("{:width$}", printable(&check.name)), Tone::Heading);
        out.extend([
            verdict.as_str(),
            "  ",
            name.as_str(),
            "  ",
            &printable(&check.found),
            "\n",
        ]);
        if !check.next_step.is_empty() {
            out.extend([
                " ".repeat(width + 9).as_str(),
                "  next: ",
                &printable(&check.next_step),
                "
",
            ]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Global;

    #[test]
    fn the_daemon_knows_better() {
        let mut checks = vec![
            host_checks::ok("qemu", "7.2".into()),
            host_checks::ok("kvm", "usable".into()),
        ];
        merge(
            &mut checks,
            vec![
                host_checks::error("kvm", "hangs".into(), "use tcg"),
                host_checks::ok("disks", "fine".into()),
                host_checks::ok("disks", "two".into()),
            ],
        );
        let printer = Printer::new(
            &Global {
                no_color: true,
                ..Global::default()
            },
            true,
        );
        assert_eq!(
            render(&printer, &checks),
            "ok       qemu   7.2\nerror    kvm    hangs\n                next: use tcg\nok       disks  fine\nok       disks  two\n"
        );
    }
}
