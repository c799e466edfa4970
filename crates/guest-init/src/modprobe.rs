//! The kernel's module loader (`/sbin/modprobe -q -- NAME`), also usable by hand.
//!
//! Reads depmod's text files (`modules.dep`, `modules.alias`, `modules.builtin`) of the modules disk. Options and
//! blacklists of modprobe.d are not read: the machine has none.

mod index;
mod settle;

use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use crate::console::{Level, chain, say};
use crate::modules;
use index::{Found, Index};

/// The most arguments that are looked at.
const MAX_ARGUMENTS: usize = 64;

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    quiet: bool,
    names: Vec<String>,
    parameters: Vec<String>,
}

/// Runs the role; status 0 when everything asked for is loaded, 1 when not, 2 when the arguments make no sense.
pub(crate) fn role(arguments: &[OsString]) -> ExitCode {
    let request = match parse(arguments) {
        Ok(request) => request,
        Err(why) => {
            tell(&why);
            return ExitCode::from(2);
        }
    };
    let directory = modules::release_directory();
    settle::wait_for_modules(&directory);
    let index = match Index::open(&directory) {
        Ok(index) => index,
        Err(error) => {
            if !request.quiet {
                tell(&chain(&error));
            }
            return ExitCode::FAILURE;
        }
    };
    let mut good = true;
    for name in &request.names {
        if let Err(why) = load(&index, name, &request.parameters) {
            good = false;
            if !(request.quiet && why.not_found) {
                tell(&why.text);
            }
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

struct Refusal {
    not_found: bool,
    text: String,
}

fn load(index: &Index, name: &str, parameters: &[String]) -> Result<(), Refusal> {
    let chains = match index.resolve(name) {
        Found::Modules(chains) => chains,
        Found::Builtin => return Ok(()),
        Found::Nothing => {
            return Err(Refusal {
                not_found: true,
                text: format!(
                    "module `{name}` was not found in {}",
                    index.directory().display()
                ),
            });
        }
    };
    let refuse = |text| Refusal {
        not_found: false,
        text,
    };
    let parameters = CString::new(parameters.join(" ")).map_err(|e| refuse(e.to_string()))?;
    let mut last = Ok(());
    for chain_of_files in chains {
        let count = chain_of_files.len();
        for (i, path) in chain_of_files.iter().enumerate() {
            if is_loaded(path) {
                continue;
            }
            let own = if i + 1 == count && !parameters.is_empty() {
                parameters.as_c_str()
            } else {
                defaults(path)
            };
            if let Err(error) = modules::load(path, own) {
                last = Err(refuse(chain(&error)));
                break;
            }
        }
    }
    last
}

/// Returns the parameters of a module for which nobody gave any; what `options` in modprobe.d is elsewhere.
fn defaults(path: &std::path::Path) -> &'static CStr {
    match index::name_of(&path.to_string_lossy()).as_str() {
        // Eight connections are tracked for each. By its own rule a machine of 1 GiB tracks 8,192, each for two minutes after
        // its end, and drops packets of others: a test of a web server reaches that in seconds.
        "nf_conntrack" => c"hashsize=16384",
        _ => c"",
    }
}

fn is_loaded(path: &std::path::Path) -> bool {
    let name = index::name_of(&path.to_string_lossy());
    std::path::Path::new("/sys/module")
        .join(name)
        .join("initstate")
        .exists()
}

fn tell(text: &str) {
    // By hand there is a terminal; from the kernel there is nothing but its log.
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "modprobe: {text}");
    } else {
        say(Level::Warning, format_args!("modprobe: {text}"));
    }
}

fn parse(arguments: &[OsString]) -> Result<Request, String> {
    if arguments.len() > MAX_ARGUMENTS {
        return Err(format!("more than {MAX_ARGUMENTS} arguments"));
    }
    let mut request = Request {
        quiet: false,
        names: Vec::new(),
        parameters: Vec::new(),
    };
    let mut all = false;
    let mut options = true;
    for argument in arguments {
        let text = std::str::from_utf8(argument.as_bytes())
            .map_err(|_| "a name is not text".to_owned())?;
        match text {
            "--" if options => options = false,
            "--quiet" if options => request.quiet = true,
            "--all" if options => all = true,
            "--syslog" | "--verbose" if options => {}
            flags if options && flags.starts_with('-') && flags.len() > 1 => {
                for flag in flags[1..].chars() {
                    match flag {
                        'q' => request.quiet = true,
                        'a' => all = true,
                        's' | 'v' | 'b' => {}
                        other => {
                            return Err(format!(
                                "option `-{other}` is not known here; only -a, -q and NAME are"
                            ));
                        }
                    }
                }
            }
            name if request.names.is_empty() || all => request.names.push(name.to_owned()),
            parameter => request.parameters.push(parameter.to_owned()),
        }
    }
    if request.names.is_empty() {
        Err("no module was named".to_owned())
    } else {
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tracking_of_connections_has_room_in_a_small_machine() {
        let of = |path: &str| defaults(std::path::Path::new(path));
        assert_eq!(
            of("/lib/modules/6.1/kernel/net/netfilter/nf_conntrack.ko.xz"),
            c"hashsize=16384"
        );
        assert_eq!(of("/m/nf_conntrack_netlink.ko"), c"");
    }

    fn parsed(arguments: &[&str]) -> Result<Request, String> {
        parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_kernels_form_and_the_hands_form_are_understood() {
        let request = |quiet, names: &[&str], parameters: &[&str]| Request {
            quiet,
            names: names.iter().map(|s| (*s).to_owned()).collect(),
            parameters: parameters.iter().map(|s| (*s).to_owned()).collect(),
        };
        assert_eq!(
            parsed(&["-q", "--", "net-pf-40"]),
            Ok(request(true, &["net-pf-40"], &[]))
        );
        assert_eq!(
            parsed(&["dummy", "numdummies=2"]),
            Ok(request(false, &["dummy"], &["numdummies=2"]))
        );
        assert_eq!(
            parsed(&["-qa", "bridge", "br_netfilter"]),
            Ok(request(true, &["bridge", "br_netfilter"], &[]))
        );
        assert!(parsed(&["-r", "x"]).is_err());
        assert!(parsed(&["-q"]).is_err());
    }

    /// The real loader, on the host's kernel: a name that exists nowhere is a failure, not a hang.
    #[test]
    fn an_unknown_module_is_a_failure() {
        assert_eq!(
            role(&["-q".into(), "--".into(), "no-such-module-anywhere".into()]),
            ExitCode::FAILURE
        );
    }
}
