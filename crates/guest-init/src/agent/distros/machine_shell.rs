//! What stands for a shell in the machine itself, which has none of its own.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hostel_instance::{ExecJob, Program};

use crate::modules::release_directory;

/// Puts a shell in the place of the one that the machine does not have: the busybox of the modules disk, else our own few
/// commands. A program that is named by its path runs as it is.
pub(super) fn with_shell(job: ExecJob, program: &Path) -> ExecJob {
    let busybox = Some(release_directory().join("hostel/busybox")).filter(|b| b.exists());
    let program = replaced(job.program, program, busybox);
    ExecJob { program, ..job }
}

fn replaced(wanted: Program, program: &Path, busybox: Option<PathBuf>) -> Program {
    let (mut argv, shell): (Vec<Vec<u8>>, &[&[u8]]) = match &busybox {
        Some(busybox) => (vec![busybox.as_os_str().as_bytes().to_vec()], &[b"sh"]),
        None => (
            vec![
                program.as_os_str().as_bytes().to_vec(),
                b"debug-shell".to_vec(),
            ],
            &[],
        ),
    };
    match wanted {
        Program::LoginShell => argv.extend(shell.iter().map(|w| w.to_vec())),
        Program::ShellCommand(line) => {
            argv.extend(shell.iter().map(|w| w.to_vec()));
            argv.extend([b"-c".to_vec(), line]);
        }
        Program::Argv(words) if words.first().is_some_and(|w| w.contains(&b'/')) => {
            return Program::Argv(words);
        }
        Program::Argv(words) => argv.extend(words),
    }
    Program::Argv(argv)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(program: Program) -> String {
        let Program::Argv(words) = program else {
            panic!("{program:?}")
        };
        words
            .iter()
            .map(|w| String::from_utf8_lossy(w))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_shell_is_always_found() {
        let init = Path::new("/init");
        let argv = |w: &[&str]| Program::Argv(w.iter().map(|w| w.as_bytes().to_vec()).collect());
        for (wanted, with, without) in [
            (Program::LoginShell, "/b sh", "/init debug-shell"),
            (
                Program::ShellCommand(b"ps".to_vec()),
                "/b sh -c ps",
                "/init debug-shell -c ps",
            ),
            (argv(&["ls", "/"]), "/b ls /", "/init debug-shell ls /"),
            (argv(&["/init", "x"]), "/init x", "/init x"),
        ] {
            assert_eq!(
                words(replaced(wanted.clone(), init, Some("/b".into()))),
                with
            );
            assert_eq!(words(replaced(wanted, init, None)), without);
        }
    }
}
