//! `hostel net helper …`: works on this host by itself, without a daemon.

use std::path::{Path, PathBuf};

use hostel_bridge::helper::{self, InstallError, Installed};
use hostel_model::{ErrorCode, Failure};
use serde_json::{Value, json};

use crate::{
    args::{HelperArgs, HelperVerb},
    surroundings::{Context, is_executable, variable},
    text::Facts,
    trouble::Trouble,
};

/// Does what a verb of `hostel net helper` asks for; without one, shows the status.
pub(super) fn helper(context: &Context, args: HelperArgs) -> Result<(), Trouble> {
    match args.verb.unwrap_or(HelperVerb::Status) {
        HelperVerb::Install { group } => install(context, group.as_deref()),
        HelperVerb::Uninstall => uninstall(context),
        HelperVerb::Status => status(context),
    }
}

fn install(context: &Context, group: Option<&str>) -> Result<(), Trouble> {
    let words = "net helper install";
    // Without root the group does not matter yet.
    if !rustix::process::geteuid().is_root() {
        return Err(not_done(&InstallError::NotRoot, words));
    }
    let groups = Groups::read();
    let group = match group {
        Some(group) => groups.number(group).ok_or_else(|| {
            Trouble::Usage(format!(
                "there is no group `{group}` in /etc/group; name another one, or give its number"
            ))
        })?,
        None => caller().ok_or_else(|| {
            Trouble::Usage(
                "root itself needs no helper; name the group it is for: hostel net helper install --group NAME"
                    .into(),
            )
        })?,
    };
    let program = program()?;
    helper::install(&program, Path::new(helper::PATH), group).map_err(|e| not_done(&e, words))?;
    if !context.printer.json {
        context.printer.say(&format!(
            "installed `{}` for the members of {}\n\
             it may change the network (cap_net_admin) and listen on port 53 of the gateway (cap_net_bind_service), and nothing else\n\
             it is used from the machine's next start on; `hostel net backends` shows it\n\
             to remove it: sudo hostel net helper uninstall",
            helper::PATH,
            groups.called(group),
        ));
        return Ok(());
    }
    status(context)
}

fn uninstall(context: &Context) -> Result<(), Trouble> {
    helper::uninstall(Path::new(helper::PATH)).map_err(|e| not_done(&e, "net helper uninstall"))?;
    if context.printer.json {
        return status(context);
    }
    context.printer.say("the helper is not installed; a machine that runs keeps its network until `hostel shutdown`");
    Ok(())
}

fn status(context: &Context) -> Result<(), Trouble> {
    let found = helper::installed(Path::new(helper::PATH));
    let groups = Groups::read();
    // Whoever may not read the installed one cannot compare.
    let current = found
        .as_ref()
        .zip(program().ok())
        .and_then(|(found, program)| helper::is_same(&program, &found.path).ok());
    let printer = &context.printer;
    if printer.json {
        return printer.json(&status_json(found.as_ref(), &groups, current));
    }
    printer.data(&status_text(found.as_ref(), &groups, current))?;
    if found.is_none() && !rustix::process::geteuid().is_root() {
        printer.say("next: sudo hostel net helper install");
    }
    Ok(())
}

fn status_json(found: Option<&Installed>, groups: &Groups, current: Option<bool>) -> Value {
    let Some(found) = found else {
        return json!({ "installed": false, "usable": false, "path": helper::PATH });
    };
    json!({
        "installed": true, "usable": found.is_usable(), "path": found.path, "group": found.group,
        "group_name": groups.name(found.group), "runnable": found.runnable, "problems": found.problems,
        "current": current,
    })
}

fn status_text(found: Option<&Installed>, groups: &Groups, current: Option<bool>) -> String {
    let mut facts = Facts::default();
    let Some(found) = found else {
        facts.add("helper", "not installed");
        return facts.render();
    };
    facts.add("helper", found.path.display().to_string());
    facts.add(
        "for",
        format!("the members of {}", groups.called(found.group)),
    );
    let state = if !found.problems.is_empty() {
        format!("not used: {}", found.problems.join("; "))
    } else if found.runnable {
        "usable".to_owned()
    } else {
        "in order, but this user is not in the group (a new group holds from the next login on)"
            .to_owned()
    };
    facts.add("state", state);
    if current == Some(false) {
        facts.add(
            "version",
            "another one than this Hostel's; run `sudo hostel net helper install` again",
        );
    }
    facts.render()
}

/// Returns the main group of the user who called sudo; root's own needs no helper.
fn caller() -> Option<u32> {
    let group = variable("SUDO_GID")?.to_str()?.parse().ok()?;
    (group != 0).then_some(group)
}

/// Finds `hostel-net` where the daemon does: as the environment says, or in the places beside this program.
fn program() -> Result<PathBuf, Failure> {
    let named = variable("HOSTEL_NET_PROGRAM")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let beside = || {
        let exe = std::env::current_exe().ok()?;
        let dir = exe.parent()?;
        [dir.to_owned(), dir.join("../lib/hostel")]
            .map(|dir| dir.join("hostel-net"))
            .into_iter()
            .find(|p| is_executable(p))
    };
    named.or_else(beside).ok_or_else(|| {
        Failure::new(
            ErrorCode::ToolMissing,
            "cannot find `hostel-net` beside this program",
        )
        .hint("install it there, or set HOSTEL_NET_PROGRAM to its path")
    })
}

fn not_done(error: &InstallError, words: &str) -> Trouble {
    let code = match error {
        InstallError::Unsafe(_) | InstallError::Io { .. } => ErrorCode::File,
        InstallError::NotRoot => ErrorCode::InvalidArgument,
    };
    let failure = Failure::from_error(code, error);
    match error {
        InstallError::NotRoot => {
            // sudo looks for programs in its own places.
            let me = std::env::current_exe().unwrap_or_else(|_| "hostel".into());
            failure.hint(format!("sudo {} {words}", me.display()))
        }
        InstallError::Unsafe(path) => failure.hint(format!(
            "sudo chown root: {0} && sudo chmod go-w {0}",
            path.display()
        )),
        InstallError::Io { .. } => failure,
    }
    .into()
}

/// The groups of this host, name and number.
struct Groups(Vec<(String, u32)>);

impl Groups {
    /// Reads /etc/group; groups from elsewhere have numbers only.
    fn read() -> Self {
        Self::parse(&fs_err::read_to_string("/etc/group").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let group = |line: &str| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        };
        Self(text.lines().filter_map(group).collect())
    }

    fn number(&self, group: &str) -> Option<u32> {
        let named = self.0.iter().find(|(name, _)| name == group);
        named.map(|(_, number)| *number).or(group.parse().ok())
    }

    fn name(&self, number: u32) -> Option<&str> {
        let named = self.0.iter().find(|(_, n)| *n == number);
        named.map(|(name, _)| name.as_str())
    }

    fn called(&self, number: u32) -> String {
        match self.name(number) {
            Some(name) => format!("the group `{name}` ({number})"),
            None => format!("the group {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Groups {
        Groups::parse("root:x:0:\n# a comment\nbroken\nann:x:1000:bob\nnet:x:27:ann,bob\n")
    }

    #[test]
    fn groups_go_by_name_or_number() {
        let groups = groups();
        assert_eq!(groups.number("ann"), Some(1000));
        assert_eq!(groups.number("4711"), Some(4711));
        assert_eq!(groups.number("nobody-has-this"), None);
        assert_eq!(groups.called(27), "the group `net` (27)");
        assert_eq!(groups.called(28), "the group 28");
    }

    #[test]
    fn the_status_says_whether_it_is_used_and_why_not() {
        let found = Installed {
            path: "/x/hostel-net".into(),
            group: 27,
            runnable: true,
            problems: Vec::new(),
        };
        let text = |found: Option<&Installed>, current| status_text(found, &groups(), current);
        assert_eq!(text(None, None), "helper  not installed\n");
        assert_eq!(
            text(Some(&found), Some(true)),
            "helper  /x/hostel-net\nfor     the members of the group `net` (27)\nstate   usable\n"
        );
        assert!(text(Some(&found), Some(false)).contains("version  another one"));
        let elsewhere = Installed {
            runnable: false,
            ..found.clone()
        };
        assert!(text(Some(&elsewhere), None).contains("not in the group"));
        let broken = Installed {
            problems: vec!["its mode is 755, not 750".into()],
            ..found.clone()
        };
        assert!(text(Some(&broken), None).contains("not used: its mode is 755, not 750\n"));
        assert_eq!(status_json(Some(&broken), &groups(), None)["usable"], false);
        assert_eq!(
            status_json(Some(&found), &groups(), None)["group_name"],
            "net"
        );
        assert_eq!(status_json(None, &groups(), None)["installed"], false);
    }

    #[test]
    fn who_is_not_root_gets_the_whole_command() {
        let Trouble::Failure(failure) = not_done(&InstallError::NotRoot, "net helper install")
        else {
            panic!("a failure")
        };
        assert!(
            failure.hints[0].starts_with("sudo /")
                && failure.hints[0].ends_with(" net helper install"),
            "{failure:?}"
        );
    }
}
