//! The command of a session: from a job to a running program.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hostel_sys::process::{Fork, SingleThreaded, StdStream};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Uid};

use super::ExecFailure;
use super::environment::Environment;
use super::job::{ExecJob, Program, Stdio};
use super::users::User;

/// A command that is ready to be forked.
pub(crate) struct Command {
    /// What to try to execute, in this order.
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    user: User,
    umask: u32,
    /// Directories to try, the wanted one first.
    directories: Vec<CString>,
    /// For messages.
    pub(crate) program: String,
}

impl Command {
    /// Turns a job into a command for a user.
    pub(crate) fn new(
        job: &ExecJob,
        user: User,
        env: &Environment,
        umask: u32,
    ) -> Result<Self, ExecFailure> {
        let c = |bytes: &[u8]| {
            CString::new(bytes).map_err(|_| {
                ExecFailure::InvalidJob(format!(
                    "`{}` holds a NUL byte",
                    String::from_utf8_lossy(bytes)
                ))
            })
        };
        let (file, argv): (Vec<u8>, Vec<Vec<u8>>) = match &job.program {
            Program::LoginShell => {
                let name = user
                    .shell
                    .rsplit(|&b| b == b'/')
                    .next()
                    .unwrap_or(&user.shell);
                (user.shell.clone(), vec![[b"-", name].concat()])
            }
            Program::ShellCommand(text) => (
                user.shell.clone(),
                vec![user.shell.clone(), b"-c".to_vec(), text.clone()],
            ),
            Program::Argv(argv) => {
                let file = argv.first().filter(|f| !f.is_empty());
                let file = file.ok_or_else(|| ExecFailure::InvalidJob("no command".to_owned()))?;
                (file.clone(), argv.clone())
            }
        };
        let mut directories = vec![c(&user.home)?, c(b"/")?];
        if let Some(wanted) = &job.directory {
            directories.insert(0, c(&directory(&wanted.0, &user.home)?)?);
        }
        let candidates = if file.contains(&b'/') {
            vec![c(&file)?]
        } else {
            let path = env.get("PATH").unwrap_or_default();
            path.split(|&b| b == b':')
                .map(|dir| {
                    c(&if dir.is_empty() {
                        file.clone()
                    } else {
                        [dir, b"/", &file].concat()
                    })
                })
                .collect::<Result<_, _>>()?
        };
        Ok(Self {
            candidates,
            argv: argv.iter().map(|a| c(a)).collect::<Result<_, _>>()?,
            env: env.to_c(),
            user,
            umask,
            directories,
            program: String::from_utf8_lossy(&file).into_owned(),
        })
    }
}

/// Works out the directory that was asked for: absolute, `~`, or `~x` for home followed by `x`.
fn directory(wanted: &[u8], home: &[u8]) -> Result<Vec<u8>, ExecFailure> {
    match wanted {
        [b'/', ..] => Ok(wanted.to_vec()),
        [b'~', rest @ ..] => Ok([home, rest].concat()),
        _ => Err(ExecFailure::InvalidJob(format!(
            "directory `{}` is neither absolute nor begins with `~`",
            String::from_utf8_lossy(wanted)
        ))),
    }
}

/// The command's three standard streams, and the caller's ends of the pipes among them.
pub(crate) struct Streams {
    command: [Source; 3],
    pub(crate) caller: Vec<OwnedFd>,
}

enum Source {
    Terminal,
    Own(OwnedFd),
}

impl Streams {
    /// Makes pipes and opens `/dev/null` as the job asks. Pipes belong to the user, so that `/dev/stdout` can be opened.
    pub(crate) fn new(job: &ExecJob, user: &User) -> io::Result<Self> {
        let mut caller = Vec::new();
        let mut stream = |kind: Stdio, towards_command: bool| -> io::Result<Source> {
            Ok(match kind {
                Stdio::Tty => Source::Terminal,
                Stdio::Null => {
                    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
                    Source::Own(rustix::fs::open("/dev/null", flags, Mode::empty())?)
                }
                Stdio::Pipe => {
                    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                    rustix::fs::fchown(
                        &read,
                        Some(Uid::from_raw(user.uid)),
                        Some(Gid::from_raw(user.gid)),
                    )?;
                    let (ours, theirs) = if towards_command {
                        (read, write)
                    } else {
                        (write, read)
                    };
                    caller.push(theirs);
                    Source::Own(ours)
                }
            })
        };
        let command = [
            stream(job.stdin, true)?,
            stream(job.stdout, false)?,
            stream(job.stderr, false)?,
        ];
        Ok(Self { command, caller })
    }

    /// Closes the command's ends, which the command holds by now.
    pub(crate) fn release(&mut self) {
        for source in &mut self.command {
            *source = Source::Terminal;
        }
    }
}

/// What the child tells before it has executed; nothing means success. Kind, then errno.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Note {
    Terminal,
    Streams,
    Identity,
    Directory,
    Exec,
}

impl Note {
    const ALL: [Self; 5] = [
        Self::Terminal,
        Self::Streams,
        Self::Identity,
        Self::Directory,
        Self::Exec,
    ];
}

/// A command that runs.
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) warnings: Vec<String>,
}

/// Forks the command and waits until it really runs or has failed. The caller leads the session of `slave`.
pub(crate) fn start(
    command: &Command,
    streams: &Streams,
    slave: &OwnedFd,
    proof: &SingleThreaded,
) -> Result<Started, ExecFailure> {
    let setup = |step: &str| {
        let step = step.to_owned();
        move |error: io::Error| ExecFailure::Setup {
            step,
            errno: error.raw_os_error().unwrap_or(0),
        }
    };
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| setup("pipe")(e.into()))?;
    let pid = match hostel_sys::process::fork(proof).map_err(setup("fork"))? {
        Fork::Child(_) => {
            drop(read);
            run(command, streams, slave, &write)
        }
        Fork::Parent(pid) => pid,
    };
    drop(write);
    let mut notes = Vec::new();
    File::from(read)
        .take(64)
        .read_to_end(&mut notes)
        .map_err(setup("waiting for the command"))?;
    let mut warnings = Vec::new();
    for note in notes.chunks_exact(5) {
        let errno = i32::from_le_bytes([note[1], note[2], note[3], note[4]]);
        let reason = io::Error::from_raw_os_error(errno);
        let failure = match Note::ALL.get(usize::from(note[0])) {
            Some(Note::Directory) => {
                let wanted = command.directories[0].to_string_lossy();
                warnings.push(format!("cannot start in `{wanted}`: {reason}"));
                continue;
            }
            Some(Note::Exec) => exec_failure(&command.program, errno),
            Some(Note::Terminal) => ExecFailure::Setup {
                step: "taking the terminal".into(),
                errno,
            },
            Some(Note::Streams) => ExecFailure::Setup {
                step: "placing the standard streams".into(),
                errno,
            },
            Some(Note::Identity) => ExecFailure::Setup {
                step: "becoming the user".into(),
                errno,
            },
            None => ExecFailure::Setup {
                step: "starting the command".into(),
                errno,
            },
        };
        return Err(failure);
    }
    Ok(Started { pid, warnings })
}

fn exec_failure(program: &str, errno: i32) -> ExecFailure {
    let program = program.to_owned();
    if [Errno::NOENT, Errno::NOTDIR]
        .iter()
        .any(|e| e.raw_os_error() == errno)
    {
        ExecFailure::NotFound { program }
    } else {
        ExecFailure::NotExecutable { program, errno }
    }
}

/// The child's way to the program.
fn run(command: &Command, streams: &Streams, slave: &OwnedFd, notes: &OwnedFd) -> ! {
    let note = |kind: Note, error: Errno| {
        let mut bytes = vec![kind as u8];
        bytes.extend(error.raw_os_error().to_le_bytes());
        // The parent waits at the other end; when it is gone there is nobody to tell.
        let _ = rustix::io::write(notes, &bytes);
    };
    let fail = |kind: Note, error: Errno| -> ! {
        note(kind, error);
        hostel_sys::process::exit_now(127)
    };
    // SIGTTOU is ignored in the session process, so a group in the background may take the terminal.
    let foreground = rustix::process::setpgid(None, None)
        .and_then(|()| rustix::termios::tcsetpgrp(slave, rustix::process::getpid()));
    if let Err(error) = foreground {
        fail(Note::Terminal, error);
    }
    let targets = [StdStream::Input, StdStream::Output, StdStream::Error];
    for (source, target) in streams.command.iter().zip(targets) {
        let fd: BorrowedFd<'_> = match source {
            Source::Terminal => slave.as_fd(),
            Source::Own(fd) => fd.as_fd(),
        };
        if let Err(error) = hostel_sys::process::put_stdio(fd, target) {
            fail(
                Note::Streams,
                Errno::from_io_error(&error).unwrap_or(Errno::IO),
            );
        }
    }
    let groups: Vec<Gid> = command
        .user
        .groups
        .iter()
        .map(|&g| Gid::from_raw(g))
        .collect();
    let (uid, gid) = (
        Uid::from_raw(command.user.uid),
        Gid::from_raw(command.user.gid),
    );
    let identity = rustix::thread::set_thread_groups(&groups)
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid));
    if let Err(error) = identity {
        fail(Note::Identity, error);
    }
    rustix::process::umask(Mode::from_raw_mode(command.umask));
    // As the user, who may not be allowed to enter.
    for (number, directory) in command.directories.iter().enumerate() {
        match rustix::process::chdir(directory.as_c_str()) {
            Ok(()) => break,
            Err(error) if number == 0 && command.directories.len() > 2 => {
                note(Note::Directory, error);
            }
            Err(_) => {}
        }
    }
    hostel_sys::signal::reset_all();
    fail(Note::Exec, execute(command))
}

/// Executes the first candidate that can be, as execvp(3) does; returns why none could.
fn execute(command: &Command) -> Errno {
    let mut found = Errno::NOENT;
    for candidate in &command.candidates {
        match hostel_sys::process::execute(candidate, &command.argv, &command.env) {
            Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::NODEV | Errno::TIMEDOUT => {}
            Errno::ACCESS => found = Errno::ACCESS,
            // A script without `#!`.
            Errno::NOEXEC => {
                let shell = c"/bin/sh".to_owned();
                let mut argv = vec![shell.clone(), candidate.clone()];
                argv.extend(command.argv.iter().skip(1).cloned());
                hostel_sys::process::execute(&shell, &argv, &command.env);
                return Errno::NOEXEC;
            }
            other => return other,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_absolute_or_begin_at_home() {
        for (wanted, result) in [
            ("/x", Some("/x")),
            ("~", Some("/home/a")),
            ("~/b", Some("/home/a/b")),
            ("~b", Some("/home/ab")),
            ("x", None),
            ("", None),
        ] {
            let got = directory(wanted.as_bytes(), b"/home/a").ok();
            assert_eq!(got.as_deref(), result.map(str::as_bytes), "{wanted}");
        }
    }
}
