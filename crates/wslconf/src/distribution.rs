//! `/etc/wsl-distribution.conf`.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    FileKind, Warning,
    value::{Values, boolean, image_path, integer, optional_string},
};

/// What an image says about its installation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DistributionConf {
    /// `[oobe]`.
    pub oobe: Oobe,
    /// `[shortcut]`.
    pub shortcut: Shortcut,
    /// `[windowsterminal]`.
    pub windows_terminal: WindowsTerminal,
}

/// `[oobe]`: the first run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Oobe {
    /// What `/bin/sh -c` runs as root at the first interactive start.
    pub command: Option<String>,
    /// The uid that becomes the default user's after it.
    pub default_uid: Option<u32>,
    /// The distribution's name when the user gave none; not checked here.
    pub default_name: Option<String>,
}

/// `[shortcut]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shortcut {
    /// Whether a menu entry is made.
    pub enabled: bool,
    /// Its icon, a path in the image.
    pub icon: Option<PathBuf>,
}

impl Default for Shortcut {
    fn default() -> Self {
        Self {
            enabled: true,
            icon: None,
        }
    }
}

/// `[windowsterminal]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WindowsTerminal {
    /// Whether a terminal profile is made.
    pub enabled: bool,
    /// Its template, a path in the image.
    pub profile_template: Option<PathBuf>,
}

impl Default for WindowsTerminal {
    fn default() -> Self {
        Self {
            enabled: true,
            profile_template: None,
        }
    }
}

impl DistributionConf {
    /// Reads a text. Reading ends at the first invalid line, as for `wsl.conf`.
    pub fn parse(text: &str) -> (Self, Vec<Warning>) {
        let mut values = Values::new(text, FileKind::WslDistributionConf);
        let v = &mut values;
        let mut conf = Self::default();
        v.set(&mut conf.oobe.command, "oobe.command", optional_string);
        v.set(&mut conf.oobe.default_uid, "oobe.defaultUid", |text| {
            Ok(u32::try_from(integer(text)?).ok())
        });
        v.set(
            &mut conf.oobe.default_name,
            "oobe.defaultName",
            optional_string,
        );
        v.set(&mut conf.shortcut.enabled, "shortcut.enabled", boolean);
        v.set(&mut conf.shortcut.icon, "shortcut.icon", image_path);
        v.set(
            &mut conf.windows_terminal.enabled,
            "windowsterminal.enabled",
            boolean,
        );
        v.set(
            &mut conf.windows_terminal.profile_template,
            "windowsterminal.profileTemplate",
            image_path,
        );
        (conf, values.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_known() {
        let text = "[oobe]\ncommand = /etc/oobe.sh\ndefaultUid = 1000\ndefaultName = Box\n[shortcut]\nenabled=false\n\
            icon = /usr/share/wsl/x.ico\n[windowsterminal]\nenabled = 0\nprofileTemplate = ../../etc/shadow\n";
        let (conf, warnings) = DistributionConf::parse(text);
        assert_eq!(conf.oobe.default_uid, Some(1000));
        assert_eq!(conf.oobe.command.as_deref(), Some("/etc/oobe.sh"));
        assert_eq!(
            conf.shortcut.icon,
            Some(PathBuf::from("/usr/share/wsl/x.ico"))
        );
        assert_eq!(
            conf.windows_terminal,
            WindowsTerminal {
                enabled: false,
                profile_template: None
            }
        );
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].to_string().contains(".."));
        assert_eq!(
            DistributionConf::parse("[oobe]\ndefaultUid=-1").0,
            DistributionConf::default()
        );
    }
}
