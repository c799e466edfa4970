//! Things that take long to make and are made once: root file systems, kernel packages.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    Need,
    need::find_program,
    run::{Output, Running},
};

/// How long a distribution may take to be made.
const MAKING: Duration = Duration::from_secs(600);

/// Returns the directory where fixtures are kept between runs; makes it.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    let dir = std::env::var_os("HOSTEL_TEST_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-cache"),
        PathBuf::from,
    );
    fs_err::create_dir_all(&dir)?;
    Ok(dir)
}

/// Returns the path of a fixture, making it when it is not there. Only one process makes it; others wait.
///
/// `make` is given a path that does not exist, and makes a file or a directory there; it counts when `make` returns.
fn cached(name: &str, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    cached_in(&cache_dir()?, name, make)
}

fn cached_in(
    dir: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    let lock = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(format!(".{name}.lock")))?;
    lock.file().lock()?;
    if !path.exists() {
        // With the lock held, what a killed call left is nobody's.
        let making = dir.join(format!(".{name}.new"));
        if making.is_dir() {
            fs_err::remove_dir_all(&making)?;
        } else if making.exists() {
            fs_err::remove_file(&making)?;
        }
        make(&making)?;
        fs_err::rename(&making, &path)?;
    }
    Ok(path)
}

/// Returns a tar of a small Debian (minbase with procps and iproute2) of a suite (`bookworm`, `trixie`), made by
/// mmdebstrap from the mirror that this host's apt uses.
///
/// Fails when mmdebstrap is not installed or the archive cannot be reached, unless it was made before.
pub fn debian_tar(suite: &str) -> anyhow::Result<PathBuf> {
    cached(&format!("debian-{suite}.tar"), |path| {
        let mode = if Need::Root.missing().is_none() {
            "root"
        } else {
            "unshare"
        };
        let mut command = Command::new("mmdebstrap");
        command
            .args([
                "--variant=minbase",
                "--include=procps,iproute2",
                "--format=tar",
            ])
            .arg(format!("--mode={mode}"))
            .arg(suite)
            .arg(path);
        if let Some(mirror) = debian_mirror() {
            command.arg(mirror);
        }
        make_with(&mut command).with_context(|| format!("cannot make Debian {suite}"))
    })
}

/// Returns the mirror of Debian's main archive that apt uses here; `None` on other distributions.
fn debian_mirror() -> Option<String> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
            "Created-By: Packages",
        ])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines()
        .find_map(|l| l.strip_prefix("Debian|Debian|"))
        .map(str::to_owned)
}

/// Returns a package of Debian's cloud kernel: what `HOSTEL_TEST_KERNEL_DEB` names, else fetched by apt once.
///
/// Fails when apt does not know it or cannot fetch it, unless it was fetched before.
pub fn kernel_deb() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOSTEL_TEST_KERNEL_DEB") {
        return Ok(path.into());
    }
    cached("linux-image-cloud-amd64.deb", |path| {
        let shown = Command::new("apt-cache")
            .args(["depends", "--important", "linux-image-cloud-amd64"])
            .env("LC_ALL", "C")
            .output()?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        let package = text
            .lines()
            .find_map(|l| l.trim().strip_prefix("Depends: linux-image-"))
            .context("apt does not know linux-image-cloud-amd64")?;
        let dir = tempfile::tempdir()?;
        let mut command = Command::new("apt-get");
        command
            .args(["--quiet", "download", &format!("linux-image-{package}")])
            .current_dir(dir.path());
        make_with(&mut command)?;
        let file = fs_err::read_dir(dir.path())?
            .next()
            .context("apt fetched nothing")??;
        fs_err::copy(file.path(), path)?;
        Ok(())
    })
}

/// Returns a tar of a very small system around busybox: every applet, `root` and an ordinary user `user` (1000, in the
/// group `staff`), both without a password.
///
/// Fails when there is no static busybox (package busybox-static).
pub fn busybox_tar() -> anyhow::Result<PathBuf> {
    let busybox = find_program("busybox").context("no program `busybox`")?;
    if !is_static(&busybox)? {
        anyhow::bail!("`{}` is not static", busybox.display());
    }
    cached("busybox.tar", |path| {
        let applets = Command::new(&busybox).arg("--list").output()?;
        write_busybox(path, &busybox, &String::from_utf8_lossy(&applets.stdout))?;
        Ok(())
    })
}

/// Tells whether a program needs no loader: no program header of the type that names one (`PT_INTERP`).
fn is_static(program: &Path) -> io::Result<bool> {
    let bytes = fs_err::read(program)?;
    let u16_at = |at: usize| {
        bytes
            .get(at..at + 2)
            .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]) as usize)
    };
    let table = bytes
        .get(32..40)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes) as usize;
    let (size, count) = (u16_at(54), u16_at(56));
    Ok(bytes.starts_with(b"\x7fELF")
        && (0..count)
            .all(|i| bytes.get(table + i * size..table + i * size + 4) != Some(&[3, 0, 0, 0])))
}

fn write_busybox(path: &Path, busybox: &Path, applets: &str) -> io::Result<()> {
    let mut out = tar::Builder::new(io::BufWriter::new(fs_err::File::create(path)?));
    let header = |kind, mode, size, owner| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(owner);
        header.set_gid(owner);
        // Fixed, so that the same busybox gives the same image.
        header.set_mtime(1_700_000_000);
        header
    };
    for (dir, mode, owner) in [
        ("bin", 0o755, 0),
        ("dev", 0o755, 0),
        ("etc", 0o755, 0),
        ("home", 0o755, 0),
        ("home/user", 0o755, 1000),
        ("mnt", 0o755, 0),
        ("proc", 0o555, 0),
        ("root", 0o700, 0),
        ("run", 0o755, 0),
        ("sys", 0o555, 0),
        ("tmp", 0o1777, 0),
        ("usr", 0o755, 0),
        ("var", 0o755, 0),
    ] {
        out.append_data(
            &mut header(tar::EntryType::Directory, mode, 0, owner),
            dir,
            io::empty(),
        )?;
    }
    for (file, mode, text) in [
        (
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
        ),
        (
            "etc/group",
            0o644,
            "root:x:0:\nstaff:x:50:user\nuser:x:1000:\n",
        ),
        (
            "etc/shadow",
            0o640,
            "root::19000:0:99999:7:::\nuser::19000:0:99999:7:::\n",
        ),
        (
            "etc/os-release",
            0o644,
            "ID=busybox\nVERSION_ID=1\nPRETTY_NAME=\"Busybox\"\n",
        ),
        (
            "etc/profile",
            0o644,
            "export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n",
        ),
    ] {
        out.append_data(
            &mut header(tar::EntryType::Regular, mode, text.len() as u64, 0),
            file,
            text.as_bytes(),
        )?;
    }
    let program = fs_err::read(busybox)?;
    let mut entry = header(tar::EntryType::Regular, 0o755, program.len() as u64, 0);
    out.append_data(&mut entry, "bin/busybox", program.as_slice())?;
    let mut links = vec![
        ("sbin".to_owned(), "bin"),
        ("usr/bin".to_owned(), "../bin"),
        ("usr/sbin".to_owned(), "../bin"),
    ];
    let names = applets
        .lines()
        .map(str::trim)
        .filter(|a| !a.is_empty() && *a != "busybox" && !a.contains('/'));
    links.extend(names.map(|name| (format!("bin/{name}"), "busybox")));
    for (path, target) in links {
        out.append_link(
            &mut header(tar::EntryType::Symlink, 0o777, 0, 0),
            path,
            target,
        )?;
    }
    out.into_inner()?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    Ok(())
}

/// Runs a program that makes a fixture; its last words are the error.
fn make_with(command: &mut Command) -> anyhow::Result<()> {
    let Output { status, stderr, .. } = Running::start(command, None)?.wait(MAKING)?;
    if !status.success() {
        anyhow::bail!(
            "{}: {}",
            command.get_program().display(),
            last_lines(&stderr)
        );
    }
    Ok(())
}

fn last_lines(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.reverse();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixture_is_made_once_and_a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let failed = cached_in(dir.path(), "x", |path| {
            fs_err::write(path, "half")?;
            anyhow::bail!("no")
        });
        assert!(failed.is_err() && !dir.path().join("x").exists());
        for n in 0..2 {
            let path = cached_in(dir.path(), "x", |path| {
                assert_eq!(n, 0, "made a second time");
                assert!(!path.exists());
                Ok(fs_err::write(path, "whole")?)
            });
            assert_eq!(fs_err::read_to_string(path.unwrap()).unwrap(), "whole");
        }
    }

    #[test]
    fn the_busybox_system_has_a_shell_and_users() {
        let path = match busybox_tar() {
            Ok(path) => path,
            Err(error) => {
                return crate::skip("the_busybox_system_has_a_shell_and_users", &error);
            }
        };
        let mut archive = tar::Archive::new(fs_err::File::open(path).unwrap());
        let names: Vec<PathBuf> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().into_owned())
            .collect();
        for name in [
            "bin/sh",
            "bin/busybox",
            "etc/passwd",
            "usr/bin",
            "home/user",
        ] {
            assert!(names.iter().any(|n| n == Path::new(name)), "{name}");
        }
    }
}
