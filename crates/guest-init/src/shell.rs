//! The debug shell of last resort: a few commands that look at the machine and change nothing.
//!
//! The boot image carries no shell. Where the modules disk brings a busybox, that is the debug shell; this one always works.

use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::process::ExitCode;

/// The longest line that is taken.
const MAX_LINE: u64 = 4096;

/// One command: its name, its arguments for the help, what it does.
struct Builtin {
    name: &'static str,
    usage: &'static str,
    run: fn(&[&str], &mut dyn Write) -> io::Result<()>,
}

const BUILTINS: &[Builtin] = &[
    Builtin {
        name: "cat",
        usage: "FILE…",
        run: cat,
    },
    Builtin {
        name: "dmesg",
        usage: "",
        run: dmesg,
    },
    Builtin {
        name: "help",
        usage: "",
        run: help,
    },
    Builtin {
        name: "ip",
        usage: "",
        run: ip,
    },
    Builtin {
        name: "ls",
        usage: "[DIRECTORY]",
        run: ls,
    },
    Builtin {
        name: "mounts",
        usage: "",
        run: |_, out| copy("/proc/self/mountinfo", out),
    },
    Builtin {
        name: "ns",
        usage: "[PID]",
        run: ns,
    },
    Builtin {
        name: "ps",
        usage: "",
        run: ps,
    },
];

/// Runs the shell: one command when arguments name it (`-c LINE`, or its words), else a line at a time from standard input.
pub(crate) fn role(arguments: &[std::ffi::OsString]) -> ExitCode {
    let words: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let result = match words[..] {
        ["-c", line, ..] => execute(&line.split_whitespace().collect::<Vec<_>>()),
        [] => interactive(io::stdin().lock()),
        _ => execute(&words),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody else to tell.
            let _ = writeln!(io::stderr(), "hostel: {error}");
            ExitCode::from(if error.kind() == io::ErrorKind::Unsupported {
                127
            } else {
                1
            })
        }
    }
}

fn interactive(mut input: impl BufRead) -> io::Result<()> {
    let mut out = io::stdout();
    loop {
        out.write_all(b"machine# ")?;
        out.flush()?;
        let mut line = Vec::new();
        if input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return out.write_all(b"\n");
        }
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["exit", ..] => return Ok(()),
            _ => {
                if let Err(error) = execute(&words) {
                    writeln!(out, "{error}")?;
                }
            }
        }
    }
}

fn execute(words: &[&str]) -> io::Result<()> {
    let Some((name, arguments)) = words.split_first() else {
        return Ok(());
    };
    let builtin = BUILTINS.iter().find(|b| b.name == *name).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            format!("`{name}` is not known here; `help` lists what is"),
        )
    })?;
    (builtin.run)(arguments, &mut io::stdout().lock())
}

fn help(_: &[&str], out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "This shell looks at the virtual machine and changes nothing. Commands:"
    )?;
    for builtin in BUILTINS {
        writeln!(out, "  {} {}", builtin.name, builtin.usage)?;
    }
    writeln!(out, "  exit")
}

fn copy(path: &str, out: &mut dyn Write) -> io::Result<()> {
    io::copy(&mut fs_err::File::open(path)?, out).map(drop)
}

fn cat(files: &[&str], out: &mut dyn Write) -> io::Result<()> {
    files.iter().try_for_each(|file| copy(file, out))
}

fn ls(arguments: &[&str], out: &mut dyn Write) -> io::Result<()> {
    let mut names: Vec<_> = fs_err::read_dir(arguments.first().unwrap_or(&"."))?
        .filter_map(|e| e.ok().map(|e| e.file_name()))
        .collect();
    names.sort();
    names
        .iter()
        .try_for_each(|name| writeln!(out, "{}", name.display()))
}

fn dmesg(_: &[&str], out: &mut dyn Write) -> io::Result<()> {
    use fs_err::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut log = fs_err::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open("/dev/kmsg")?;
    // Each read gives one record: "level,number,microseconds,flags;text".
    let mut record = [0; 8192];
    loop {
        let length = match log.read(&mut record) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // Records were overwritten meanwhile; the next read goes on behind them.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&record[..length]);
        let (head, body) = text.split_once(';').unwrap_or(("", &text));
        let micros: u64 = head
            .split(',')
            .nth(2)
            .and_then(|t| t.parse().ok())
            .unwrap_or(0);
        let line = body.lines().next().unwrap_or_default();
        writeln!(
            out,
            "[{:5}.{:06}] {line}",
            micros / 1_000_000,
            micros % 1_000_000
        )?;
    }
}

fn ip(_: &[&str], out: &mut dyn Write) -> io::Result<()> {
    for entry in fs_err::read_dir("/sys/class/net")? {
        let path = entry?.path();
        let read = |file| {
            fs_err::read_to_string(path.join(file))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let name = path.file_name().unwrap_or_default().display();
        writeln!(
            out,
            "{name}: {} mtu {} {}",
            read("operstate"),
            read("mtu"),
            read("address")
        )?;
    }
    for table in ["/proc/net/fib_trie", "/proc/net/route"] {
        writeln!(out, "{table}:")?;
        copy(table, out)?;
    }
    Ok(())
}

fn ns(arguments: &[&str], out: &mut dyn Write) -> io::Result<()> {
    let pid = match arguments.first() {
        Some(text) => text.parse().map_err(io::Error::other)?,
        None => std::process::id(),
    };
    for namespace in hostel_instance::namespaces(pid, 1)? {
        let whose = if namespace.shared {
            "the machine's"
        } else {
            "its own"
        };
        writeln!(out, "{:8} {} {whose}", namespace.kind, namespace.inode)?;
    }
    Ok(())
}

fn ps(_: &[&str], out: &mut dyn Write) -> io::Result<()> {
    let mut pids: Vec<u32> = fs_err::read_dir("/proc")?
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let directory = Path::new("/proc").join(pid.to_string());
        // A process may end while it is looked at.
        let Ok(status) = fs_err::read_to_string(directory.join("status")) else {
            continue;
        };
        let field = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .map(str::trim)
                .unwrap_or_default()
                .to_owned()
        };
        let line = fs_err::read(directory.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let shown = if line.trim().is_empty() {
            format!("[{}]", field("Name:"))
        } else {
            line
        };
        let state = field("State:").chars().next().unwrap_or('?');
        writeln!(
            out,
            "{pid:>7} {:>7} {state} {:>10} {}",
            field("PPid:"),
            field("VmRSS:"),
            shown.trim_end()
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(words: &[&str]) -> io::Result<String> {
        let builtin = BUILTINS.iter().find(|b| b.name == words[0]).unwrap();
        let mut out = Vec::new();
        (builtin.run)(&words[1..], &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn commands_look_at_the_machine() {
        let own = std::process::id().to_string();
        assert!(output(&["ps"]).unwrap().contains(&own));
        assert!(output(&["ls", "/proc"]).unwrap().contains("self"));
        assert!(output(&["mounts"]).unwrap().contains(" / "));
        assert!(output(&["ip"]).unwrap().contains("lo:"));
        assert_eq!(
            output(&["cat", "/proc/self/comm"]).unwrap(),
            fs_err::read_to_string("/proc/self/comm").unwrap()
        );
        for builtin in BUILTINS {
            assert!(output(&["help"]).unwrap().contains(builtin.name));
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert!(
            output(&["cat", "/nonexistent"])
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
        assert!(output(&["ns", "x"]).is_err());
        assert_eq!(
            execute(&["reboot"]).unwrap_err().kind(),
            io::ErrorKind::Unsupported
        );
    }
}
