//! Where Hostel keeps its things; worked out from the environment by one function, so that client and daemon agree.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The directories and files of one Hostel of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// State that must survive: registry, disks, kernels.
    pub home: PathBuf,
    /// Sockets, locks and logs; mode 0700, gone after a restart of the host.
    pub runtime: PathBuf,
    /// Configuration files, the first that exists is read.
    pub config_files: Vec<PathBuf>,
}

impl Paths {
    /// Works the paths out.
    ///
    /// `env` looks a variable up (an empty one counts as unset), `home` is the user's home directory, `is_dir` tells
    /// whether a directory exists. Settings, first wins: home `$HOSTEL_HOME`, `$XDG_DATA_HOME/hostel`,
    /// `~/.local/share/hostel`; runtime `$HOSTEL_RUNTIME_DIR`, `$XDG_RUNTIME_DIR/hostel`, `/run/user/<uid>/hostel`,
    /// `/tmp/hostel-<uid>`. With a home of its own and no runtime directory of its own, a Hostel's runtime directory
    /// carries a hash of the home, so that two homes never meet in one socket.
    ///
    /// A relative XDG variable is ignored, as the XDG specification demands. A relative `$HOSTEL_HOME` or
    /// `$HOSTEL_RUNTIME_DIR` must have been made absolute by `env`.
    pub fn from_env(
        env: &dyn Fn(&str) -> Option<OsString>,
        uid: u32,
        home: &Path,
        is_dir: &dyn Fn(&Path) -> bool,
    ) -> Self {
        let var = |name: &str| {
            env(name)
                .filter(|v| !v.is_empty())
                .map(|v| tidy(Path::new(&v)))
        };
        let xdg = |name: &str| var(name).filter(|p| p.is_absolute());

        let own_home = var("HOSTEL_HOME");
        let suffix = own_home
            .as_deref()
            .map(|p| format!("-{:08x}", hash(p)))
            .unwrap_or_default();
        let state = own_home
            .or_else(|| Some(xdg("XDG_DATA_HOME")?.join("hostel")))
            .unwrap_or_else(|| home.join(".local/share/hostel"));

        let run_user = PathBuf::from(format!("/run/user/{uid}"));
        let runtime = var("HOSTEL_RUNTIME_DIR").unwrap_or_else(|| {
            match xdg("XDG_RUNTIME_DIR").or_else(|| is_dir(&run_user).then_some(run_user)) {
                Some(parent) => parent.join(format!("hostel{suffix}")),
                None => PathBuf::from(format!("/tmp/hostel-{uid}{suffix}")),
            }
        });

        let config = xdg("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let config_files = vec![config.join("hostel/hostel.conf"), home.join(".wslconfig")];
        Self {
            home: state,
            runtime,
            config_files,
        }
    }

    /// Returns the socket on which the daemon serves its API.
    pub fn api_socket(&self) -> PathBuf {
        self.runtime.join("api.sock")
    }

    /// Returns the socket on which raw streams are claimed.
    pub fn stream_socket(&self) -> PathBuf {
        self.runtime.join("stream.sock")
    }

    /// Returns the lock that the one living daemon holds.
    pub fn daemon_lock(&self) -> PathBuf {
        self.runtime.join("daemon.lock")
    }

    /// Returns the lock that a client holds while it starts the daemon.
    pub fn start_lock(&self) -> PathBuf {
        self.runtime.join("start.lock")
    }

    /// Returns the daemon's log.
    pub fn daemon_log(&self) -> PathBuf {
        self.runtime.join("daemon.log")
    }

    /// Returns the log of the VM's console.
    pub fn console_log(&self) -> PathBuf {
        self.runtime.join("console.log")
    }
}

/// Drops doubled and trailing separators and `.`, so that one directory has one hash.
fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

/// FNV-1a, folded to 32 bits: stable for ever, unlike the standard library's hasher.
fn hash(path: &Path) -> u32 {
    let long = path
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
        });
    (long ^ (long >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(vars: &[(&str, &str)], run_user: bool) -> Paths {
        let env = |name: &str| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(v))
        };
        Paths::from_env(&env, 1000, Path::new("/home/me"), &|_| run_user)
    }

    #[test]
    fn each_setting_beats_the_next() {
        for (vars, run_user, home, runtime) in [
            (
                &[][..],
                false,
                "/home/me/.local/share/hostel",
                "/tmp/hostel-1000",
            ),
            (
                &[],
                true,
                "/home/me/.local/share/hostel",
                "/run/user/1000/hostel",
            ),
            (
                &[("XDG_DATA_HOME", "/d"), ("XDG_RUNTIME_DIR", "/r")],
                true,
                "/d/hostel",
                "/r/hostel",
            ),
            (
                &[("XDG_DATA_HOME", "d"), ("XDG_RUNTIME_DIR", "")],
                false,
                "/home/me/.local/share/hostel",
                "/tmp/hostel-1000",
            ),
            (
                &[
                    ("HOSTEL_HOME", "/h//x/"),
                    ("HOSTEL_RUNTIME_DIR", "/q"),
                    ("XDG_RUNTIME_DIR", "/r"),
                ],
                true,
                "/h/x",
                "/q",
            ),
        ] {
            let got = paths(vars, run_user);
            assert_eq!(
                (got.home, got.runtime),
                (home.into(), runtime.into()),
                "{vars:?}"
            );
        }
    }

    #[test]
    fn a_home_of_its_own_has_a_runtime_directory_of_its_own() {
        let a = paths(&[("HOSTEL_HOME", "/h/a"), ("XDG_RUNTIME_DIR", "/r")], false);
        let same = paths(
            &[("HOSTEL_HOME", "/h//a/./"), ("XDG_RUNTIME_DIR", "/r")],
            false,
        );
        let b = paths(&[("HOSTEL_HOME", "/h/b"), ("XDG_RUNTIME_DIR", "/r")], false);
        assert_eq!(a.runtime, same.runtime);
        assert_ne!(a.runtime, b.runtime);
        // Stable for ever: a client must find the daemon that an older client started.
        assert_eq!(a.runtime, Path::new("/r/hostel-6f353a5e"));
        assert!(
            paths(&[("HOSTEL_HOME", "/h/a")], false)
                .runtime
                .starts_with("/tmp")
        );
    }

    #[test]
    fn the_configuration_falls_back_to_the_reference_s_file() {
        assert_eq!(
            paths(&[("XDG_CONFIG_HOME", "/c")], false).config_files,
            [
                Path::new("/c/hostel/hostel.conf"),
                Path::new("/home/me/.wslconfig")
            ]
        );
    }
}
