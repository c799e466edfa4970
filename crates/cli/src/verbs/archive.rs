//! Verbs that make a distribution or an archive of one.
//!
//! The client opens the archive, with the user's rights and in the user's directory, and hands the open file over; no
//! byte of it flows through the client.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use hostel_model::{Bytes, ErrorCode, Failure, Paths, Token};
use hostel_proto::v1::{self, StreamToken, TaskDone};
use tempfile::NamedTempFile;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::{ExportArgs, Format, ImportArgs, InstallArgs},
    connect, progress,
    surroundings::Context,
    trouble::Trouble,
    view,
};

/// `hostel import`.
pub(super) async fn import(context: &Context, args: ImportArgs) -> Result<(), Trouble> {
    let standard_input = args.file == Path::new("-");
    let file: Option<File> = if standard_input {
        if io::stdin().is_terminal() {
            return Err(Trouble::Usage(
                "standard input is a terminal, which gives no archive; use a pipe or name a file"
                    .into(),
            ));
        }
        None
    } else {
        Some(open_archive(&args.file)?)
    };
    let mut daemon = connect::connect(&context.paths).await?;
    let request = v1::ImportRequest {
        name: args.name.to_string(),
        source_name: args.file.to_string_lossy().into_owned(),
        disk_limit_bytes: args.disk_size.map_or(0, |s| s.0),
        set_default: args.set_default,
    };
    let events = daemon.api.import(request).await?.into_inner();
    let mut handed = None;
    let claim = |token| {
        let stdin = io::stdin();
        let fd = file.as_ref().map_or_else(|| stdin.as_fd(), AsFd::as_fd);
        handed = Some(hand_over(&context.paths, &token, fd)?);
        Ok(())
    };
    let done = progress::follow(&context.printer, events, claim).await?;
    let shared = if done.base_shared {
        ", shares its base image with another"
    } else {
        ""
    };
    finish(
        context,
        &done,
        &format!(
            "imported `{}` ({} read{shared})",
            args.name,
            Bytes(done.bytes)
        ),
    )
}

/// Opens an archive; a directory would only be found out by the daemon.
fn open_archive(path: &Path) -> Result<File, Trouble> {
    let trouble =
        |e: &io::Error| Trouble::file(format!("cannot open the archive `{}`", path.display()), e);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .open(path)
        .map_err(|e| trouble(&e))?;
    if file.metadata().map_err(|e| trouble(&e))?.is_dir() {
        return Err(Failure::new(
            ErrorCode::File,
            format!("`{}` is a directory, not an archive", path.display()),
        )
        .hint(format!(
            "run `tar -C {} -c . | hostel import NAME -`",
            path.display()
        ))
        .into());
    }
    Ok(file)
}

/// `hostel export`.
pub(super) async fn export(context: &Context, args: ExportArgs) -> Result<(), Trouble> {
    let target = Target::prepare(&args.file)?;
    let format = args.format.unwrap_or_else(|| Format::of_file(&args.file));
    let mut daemon = connect::connect(&context.paths).await?;
    let request = v1::ExportRequest {
        name: args.name.to_string(),
        format: format.as_str().into(),
    };
    let stdout = io::stdout();
    let work = async {
        let events = daemon.api.export(request).await?.into_inner();
        let mut handed = None;
        let claim = |token| {
            handed = Some(hand_over(&context.paths, &token, target.fd(&stdout))?);
            Ok(())
        };
        progress::follow(&context.printer, events, claim).await
    };
    // A signal must not leave half an archive behind.
    let done = tokio::select! {
        done = work => done?,
        signal = ending_signal() => return Err(Trouble::Signal(signal?)),
    };
    let to_stdout = matches!(target, Target::Stdout);
    target.commit(&args.file)?;
    if to_stdout {
        context.printer.say(&format!(
            "exported `{}` ({} written)",
            args.name,
            Bytes(done.bytes)
        ));
        return Ok(());
    }
    let file = args.file.display();
    finish(
        context,
        &done,
        &format!(
            "exported `{}` to `{file}` ({} written)",
            args.name,
            Bytes(done.bytes)
        ),
    )
}

/// Where an export goes.
enum Target {
    Stdout,
    /// A device or a pipe, written in place.
    InPlace(File),
    /// A file that takes its name when it is whole; until then it is removed when dropped.
    Renamed(NamedTempFile, PathBuf),
}

impl Target {
    fn prepare(path: &Path) -> Result<Self, Trouble> {
        if path == Path::new("-") {
            if io::stdout().is_terminal() {
                return Err(Trouble::Usage(
                    "standard output is a terminal; redirect it or name a file".into(),
                ));
            }
            return Ok(Self::Stdout);
        }
        let trouble = |e: &io::Error| {
            Trouble::file(format!("cannot write the archive `{}`", path.display()), e)
        };
        // A link stays a link: what it points to is replaced.
        let place = match path.canonicalize() {
            Ok(place) => place,
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(e) => return Err(trouble(&e)),
        };
        if let Ok(meta) = fs_err::metadata(&place) {
            if meta.is_dir() {
                return Err(trouble(&io::Error::other("it is a directory")));
            }
            if !meta.is_file() {
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .open(&place)
                    .map_err(|e| trouble(&e))?;
                return Ok(Self::InPlace(file));
            }
        }
        let dir = place
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let temp = tempfile::Builder::new()
            .prefix(".hostel-export-")
            .suffix(".part")
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(dir)
            .map_err(|e| trouble(&e))?;
        Ok(Self::Renamed(temp, place))
    }

    fn fd<'a>(&'a self, stdout: &'a io::Stdout) -> BorrowedFd<'a> {
        match self {
            Self::Stdout => stdout.as_fd(),
            Self::InPlace(file) => file.as_fd(),
            Self::Renamed(file, _) => file.as_file().as_fd(),
        }
    }

    fn commit(self, path: &Path) -> Result<(), Trouble> {
        let Self::Renamed(file, place) = self else {
            return Ok(());
        };
        let sync_dir = || match place.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => fs_err::File::open(dir)?.sync_all(),
            _ => fs_err::File::open(".")?.sync_all(),
        };
        file.as_file()
            .sync_all()
            .and_then(|()| file.persist(&place).map_err(|e| e.error))
            .and_then(|_| sync_dir())
            .map_err(|e| {
                Trouble::file(format!("cannot write the archive `{}`", path.display()), &e)
            })
    }
}

/// Waits for a signal that ends this program.
async fn ending_signal() -> Result<i32, Trouble> {
    let watch = |kind| signal(kind).map_err(|e| Trouble::file("cannot watch signals", &e));
    let (mut interrupt, mut terminate, mut hangup) = (
        watch(SignalKind::interrupt())?,
        watch(SignalKind::terminate())?,
        watch(SignalKind::hangup())?,
    );
    Ok(tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
        _ = hangup.recv() => SignalKind::hangup().as_raw_value(),
    })
}

/// Claims an archive's stream and sends the open file with the token. The connection lives as long as the task.
fn hand_over(
    paths: &Paths,
    token: &StreamToken,
    file: BorrowedFd<'_>,
) -> Result<UnixStream, Trouble> {
    let Some(bytes) = Token::from_bytes(&token.token) else {
        return Err(Failure::new(
            ErrorCode::Protocol,
            format!("the daemon sent a token of {} bytes", token.token.len()),
        )
        .into());
    };
    let connection = connect::dial_stream(paths)?;
    hostel_sys::fdpass::send(&connection, bytes.as_bytes(), &[file])
        .map_err(|e| Trouble::file("cannot hand the archive to the daemon", &e))?;
    Ok(connection)
}

/// `hostel install`.
pub(super) async fn install(context: &Context, args: InstallArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let request = v1::InstallRequest {
        source: args.source.clone(),
        name: args.name.map(String::from).unwrap_or_default(),
        packages: args
            .include
            .into_iter()
            .map(|p| p.trim().to_owned())
            .filter(|p| !p.is_empty())
            .collect(),
        set_default: args.set_default,
    };
    let events = daemon.api.install(request).await?.into_inner();
    let done = progress::follow(&context.printer, events, |_| Ok(())).await?;
    let name = done
        .distro
        .as_ref()
        .map(|d| d.name.clone())
        .unwrap_or_default();
    finish(
        context,
        &done,
        &format!(
            "installed {} as `{name}`; try `hostel -d {name}`",
            args.source
        ),
    )
}

/// Tells what came of a task.
pub(super) fn finish(context: &Context, done: &TaskDone, text: &str) -> Result<(), Trouble> {
    if context.printer.json {
        return context.printer.json(&view::done(done));
    }
    context.printer.say(text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_export_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let names = || fs_err::read_dir(dir.path()).unwrap().count();

        let target = Target::prepare(&path).unwrap();
        assert_eq!(names(), 1);
        drop(target);
        assert_eq!(names(), 0);

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        fs_err::write(&path, "old").unwrap();
        let target = Target::prepare(&link).unwrap();
        let mut file = File::from(target.fd(&io::stdout()).try_clone_to_owned().unwrap());
        file.write_all(b"new").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"old");
        target.commit(&link).unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"new");
        assert!(fs_err::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(), 2);
    }

    #[test]
    fn what_is_no_file_is_written_in_place_or_refused() {
        assert!(matches!(
            Target::prepare(Path::new("/dev/null")).unwrap(),
            Target::InPlace(_)
        ));
        let dir = tempfile::tempdir().unwrap();
        assert!(Target::prepare(dir.path()).is_err());
        let error = Target::prepare(&dir.path().join("no/such"))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.ends_with("no/such`: no such file or directory"),
            "{error}"
        );
        let error = open_archive(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is a directory"), "{error}");
        let error = open_archive(&dir.path().join("x")).unwrap_err().to_string();
        assert!(error.ends_with("x`: no such file or directory"), "{error}");
    }
}
