//! `/etc/wsl.conf`.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use crate::{
    FileKind, Warning,
    value::{Values, boolean, integer, millis_or_never, optional_string, path, string, word},
};

/// What a distribution's `/etc/wsl.conf` says, defaults filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WslConf {
    /// `[automount]`.
    pub automount: Automount,
    /// `[filesystem]`.
    pub filesystem: Filesystem,
    /// `[interop]`.
    pub interop: Interop,
    /// `[network]`.
    pub network: Network,
    /// `[time]`.
    pub time: Time,
    /// `[fileServer]`.
    pub file_server: FileServer,
    /// `[gpu]`.
    pub gpu: Gpu,
    /// `[user]`.
    pub user: User,
    /// `[boot]`.
    pub boot: Boot,
    /// `[general]`.
    pub general: WslGeneral,
}

/// `[automount]`: the host's file systems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Automount {
    /// Whether the host's drives are mounted.
    pub enabled: bool,
    /// Where; absolute, ends with `/`.
    pub root: String,
    /// More mount options for every drive.
    pub options: String,
    /// Whether `mount -a` runs before.
    pub mount_fs_tab: bool,
    /// Whether the host's libraries are made known to ld.so.
    pub ldconfig: bool,
    /// Which control groups the distribution sees.
    pub cgroups: Cgroups,
}

impl Default for Automount {
    fn default() -> Self {
        Self {
            enabled: true,
            root: "/mnt/".to_owned(),
            options: String::new(),
            mount_fs_tab: true,
            ldconfig: true,
            cgroups: Cgroups::V2,
        }
    }
}

/// Which control groups a distribution sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cgroups {
    /// Version 1 with version 2 below it.
    V1,
    /// Version 2.
    V2,
}

/// `[filesystem]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    /// The umask of user processes.
    pub umask: u32,
}

impl Default for Filesystem {
    fn default() -> Self {
        Self { umask: 0o022 }
    }
}

/// `[interop]`: running the host's programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interop {
    /// Whether they can be run.
    pub enabled: bool,
    /// Whether the host's PATH is appended.
    pub append_windows_path: bool,
}

impl Default for Interop {
    fn default() -> Self {
        Self {
            enabled: true,
            append_windows_path: true,
        }
    }
}

/// `[network]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Whether `/etc/hosts` is written at each start.
    pub generate_hosts: bool,
    /// Whether `/etc/resolv.conf` is kept.
    pub generate_resolv_conf: bool,
    /// The host name as written; clean it with [`clean_hostname`](crate::clean_hostname).
    pub hostname: Option<String>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            generate_hosts: true,
            generate_resolv_conf: true,
            hostname: None,
        }
    }
}

/// `[time]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Time {
    /// Whether the host's time zone is taken over.
    pub use_windows_timezone: bool,
}

impl Default for Time {
    fn default() -> Self {
        Self {
            use_windows_timezone: true,
        }
    }
}

/// `[fileServer]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileServer {
    /// Whether the distribution's files are offered to the host.
    pub enabled: bool,
    /// Where the server logs.
    pub log_file: Option<PathBuf>,
    /// How much it logs.
    pub log_level: i32,
    /// Whether the log is emptied at start.
    pub log_truncate: bool,
}

impl Default for FileServer {
    fn default() -> Self {
        Self {
            enabled: true,
            log_file: None,
            log_level: 4,
            log_truncate: true,
        }
    }
}

/// `[gpu]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Whether the GPU's libraries and drivers are mounted.
    pub enabled: bool,
    /// Whether their directory is appended to PATH.
    pub append_lib_path: bool,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            enabled: true,
            append_lib_path: true,
        }
    }
}

/// `[user]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct User {
    /// The default user's name; beats the registered uid.
    pub default: Option<String>,
}

/// `[boot]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// Whether `/sbin/init` runs as PID 1.
    pub systemd: bool,
    /// What `sh -c` runs as root once at each start.
    pub command: Option<String>,
    /// How long systemd may take; `None`: it is not waited for.
    pub init_timeout: Option<Duration>,
    /// Whether systemd is kept from clearing the kernel's table of binary formats.
    pub protect_binfmt: bool,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            systemd: false,
            command: None,
            init_timeout: Some(Duration::from_secs(10)),
            protect_binfmt: true,
        }
    }
}

/// `[general]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WslGeneral {
    /// Whether graphical programs are offered; `None`: as the machine does.
    pub gui_applications: Option<bool>,
}

impl WslConf {
    /// Reads a text. Reading ends at the first invalid line; what stands before it counts (CNF-4).
    pub fn parse(text: &str) -> (Self, Vec<Warning>) {
        let mut values = Values::new(text, FileKind::WslConf);
        let v = &mut values;
        let mut conf = Self::default();
        v.set(&mut conf.automount.enabled, "automount.enabled", boolean);
        v.set(&mut conf.automount.root, "automount.root", mount_root);
        v.set(&mut conf.automount.options, "automount.options", string);
        v.set(
            &mut conf.automount.mount_fs_tab,
            "automount.mountFsTab",
            boolean,
        );
        v.set(&mut conf.automount.ldconfig, "automount.ldconfig", boolean);
        let cgroups = |text: &str| word(text, &[("v1", Cgroups::V1), ("v2", Cgroups::V2)]);
        v.set(&mut conf.automount.cgroups, "automount.cgroups", cgroups);
        v.set(&mut conf.filesystem.umask, "filesystem.umask", umask);
        v.set(&mut conf.interop.enabled, "interop.enabled", boolean);
        v.set(
            &mut conf.interop.append_windows_path,
            "interop.appendWindowsPath",
            boolean,
        );
        v.set(
            &mut conf.network.generate_hosts,
            "network.generateHosts",
            boolean,
        );
        v.set(
            &mut conf.network.generate_resolv_conf,
            "network.generateResolvConf",
            boolean,
        );
        v.set(
            &mut conf.network.hostname,
            "network.hostname",
            optional_string,
        );
        v.set(
            &mut conf.time.use_windows_timezone,
            "time.useWindowsTimezone",
            boolean,
        );
        v.set(&mut conf.file_server.enabled, "fileServer.enabled", boolean);
        v.set(&mut conf.file_server.log_file, "fileServer.logFile", path);
        v.set(
            &mut conf.file_server.log_level,
            "fileServer.logLevel",
            integer,
        );
        v.set(
            &mut conf.file_server.log_truncate,
            "fileServer.logTruncate",
            boolean,
        );
        v.set(&mut conf.gpu.enabled, "gpu.enabled", boolean);
        v.set(&mut conf.gpu.append_lib_path, "gpu.appendLibPath", boolean);
        v.set(&mut conf.user.default, "user.default", optional_string);
        v.set(&mut conf.boot.systemd, "boot.systemd", boolean);
        v.set(&mut conf.boot.command, "boot.command", optional_string);
        let timeout =
            |text: &str| millis_or_never(text).map(|time| time.filter(|time| !time.is_zero()));
        v.set(&mut conf.boot.init_timeout, "boot.initTimeout", timeout);
        v.set(&mut conf.boot.protect_binfmt, "boot.protectBinfmt", boolean);
        v.set(
            &mut conf.general.gui_applications,
            "general.guiApplications",
            |text| boolean(text).map(Some),
        );
        (conf, values.finish())
    }

    /// Turns off what the machine's safe mode turns off, whatever the file says.
    #[must_use]
    pub fn in_safe_mode(mut self) -> Self {
        self.automount.enabled = false;
        self.automount.mount_fs_tab = false;
        self.automount.ldconfig = false;
        self.boot.command = None;
        self.boot.systemd = false;
        self.network.generate_hosts = false;
        self.network.generate_resolv_conf = false;
        self.file_server.enabled = false;
        self.gpu = Gpu {
            enabled: false,
            append_lib_path: false,
        };
        self.interop = Interop {
            enabled: false,
            append_windows_path: false,
        };
        self.time.use_windows_timezone = false;
        self
    }
}

fn mount_root(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
        return Err("it is an absolute path without `..`".to_owned());
    }
    Ok(if text.ends_with('/') {
        text.to_owned()
    } else {
        format!("{text}/")
    })
}

fn umask(text: &str) -> Result<u32, String> {
    let bits = integer(text)?;
    u32::try_from(bits)
        .ok()
        .filter(|bits| *bits <= 0o777)
        .ok_or_else(|| "it is a number from 0 to 0777".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gives_the_defaults() {
        let (conf, warnings) = WslConf::parse("# only a comment\n");
        assert_eq!((conf.clone(), warnings), (WslConf::default(), vec![]));
        assert!(conf.automount.enabled && !conf.boot.systemd && conf.network.generate_hosts);
        assert_eq!(
            (conf.automount.root.as_str(), conf.filesystem.umask),
            ("/mnt/", 0o22)
        );
        assert_eq!(conf.boot.init_timeout, Some(Duration::from_secs(10)));
    }

    #[test]
    fn every_key_is_known_and_in_any_case() {
        let text = "[automount]\nenabled=0\nROOT=/media\noptions=\"metadata,uid=1\"\nmountfstab=false\nldconfig=0\ncgroups=V1\n\
            [filesystem]\numask=077\n[interop]\nenabled=false\nappendWindowsPath=0\n\
            [network]\ngenerateHosts=0\ngenerateResolvConf=false\nhostname=Box\n[time]\nuseWindowsTimezone=0\n\
            [fileServer]\nenabled=0\nlogFile=/var/log/x\nlogLevel=5\nlogTruncate=0\n[gpu]\nenabled=0\nappendLibPath=0\n\
            [user]\ndefault=me\n[boot]\nsystemd=true\ncommand=echo \\\"hi\\\"\ninitTimeout=0\nprotectBinfmt=0\n[general]\nguiApplications=0\n";
        let (conf, warnings) = WslConf::parse(text);
        assert_eq!(warnings, []);
        assert_eq!(conf.automount.root, "/media/");
        assert_eq!(
            (conf.automount.cgroups, conf.filesystem.umask),
            (Cgroups::V1, 0o77)
        );
        assert_eq!(conf.boot.command.as_deref(), Some("echo \"hi\""));
        assert_eq!((conf.boot.init_timeout, conf.boot.systemd), (None, true));
        assert_eq!(
            (
                conf.user.default.as_deref(),
                conf.network.hostname.as_deref()
            ),
            (Some("me"), Some("Box"))
        );
        assert_eq!(conf.general.gui_applications, Some(false));
    }

    /// CNF-4, CNF-5.
    #[test]
    fn problems_are_told_with_their_place() {
        let text =
            "[boot]\nsystemd = yes\nnonsense = 1\n[boot]\nSYSTEMD=true\n  ; bad\nprotectBinfmt=0\n";
        let (conf, warnings) = WslConf::parse(text);
        assert_eq!((conf.boot.systemd, conf.boot.protect_binfmt), (false, true));
        let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "2:1: `boot.systemd` cannot be `yes`: it is `true` or `false`; the default is kept",
                "3:1: unknown key `boot.nonsense`",
                "5:1: `boot.SYSTEMD` was set in line 2 already; this line is ignored",
                "6:3: invalid line: a key begins with a letter; the rest of the file is ignored",
            ]
        );
    }

    #[test]
    fn safe_mode_turns_off_what_could_hurt() {
        let conf = WslConf::parse("[boot]\nsystemd=true\ncommand=x\n[user]\ndefault=me\n")
            .0
            .in_safe_mode();
        assert!(
            !conf.boot.systemd
                && conf.boot.command.is_none()
                && !conf.automount.enabled
                && !conf.network.generate_hosts
        );
        assert_eq!(conf.user.default.as_deref(), Some("me"));
    }
}
