//! Options of what makes a distribution or an archive of one.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use clap_complete::ArgValueCandidates;
use hostel_model::{Bytes, DistroName};

use crate::complete;

/// Make a distribution from an archive of a root file system
///
/// Reads tar, tar.gz, tar.xz, tar.zst, tar.bz2 and .wsl files; what it is shows in the content, not in the name. The
/// first distribution becomes the default one.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hostel import trixie rootfs.tar.xz
  curl -L https://example.org/rootfs.tar.gz | hostel import trixie -")]
pub(crate) struct ImportArgs {
    /// Name of the new distribution
    pub(crate) name: DistroName,
    /// Archive, or `-` for standard input
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Most the disk may grow to, such as 256GB [default: defaultVhdSize of the configuration, else 256GB; space is taken as it is used]
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk_size: Option<Bytes>,
    /// Make it the default distribution
    #[arg(long)]
    pub(crate) set_default: bool,
}

/// Write a distribution into an archive; it is stopped first
///
/// A file appears whole or not at all: it is written beside its place and renamed at the end, which replaces a file of
/// that name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hostel export trixie backup.tar.zst
  hostel export trixie - | ssh elsewhere hostel import trixie -")]
pub(crate) struct ExportArgs {
    /// Distribution
    #[arg(add = ArgValueCandidates::new(complete::distros))]
    pub(crate) name: DistroName,
    /// File to write, or `-` for standard output
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Format of the archive [default: by the ending of the file's name, else tar]
    #[arg(long)]
    pub(crate) format: Option<Format>,
}

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Not compressed
    #[value(name = "tar")]
    Tar,
    /// gzip
    #[value(name = "tar.gz")]
    TarGz,
    /// xz, the smallest
    #[value(name = "tar.xz")]
    TarXz,
    /// zstd, the fastest that is small
    #[value(name = "tar.zst")]
    TarZst,
}

impl Format {
    /// Chooses by the ending of a file's name, case ignored; `.wsl` files are gzip by custom.
    pub(crate) fn of_file(file: &Path) -> Self {
        let name = file
            .file_name()
            .map(|n| n.to_string_lossy().to_ascii_lowercase())
            .unwrap_or_default();
        let ends = |endings: &[&str]| endings.iter().any(|e| name.ends_with(e));
        if ends(&[".tar.gz", ".tgz", ".wsl"]) {
            Self::TarGz
        } else if ends(&[".tar.xz", ".txz"]) {
            Self::TarXz
        } else if ends(&[".tar.zst", ".tzst"]) {
            Self::TarZst
        } else {
            Self::Tar
        }
    }

    /// Returns the word of the contract.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::TarGz => "tar.gz",
            Self::TarXz => "tar.xz",
            Self::TarZst => "tar.zst",
        }
    }
}

/// Make a distribution from its own archive of packages
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hostel install debian:trixie
  hostel install debian:bookworm --name old --include vim,git")]
pub(crate) struct InstallArgs {
    /// What to install, NAME:RELEASE, such as debian:trixie
    pub(crate) source: String,
    /// Name of the new distribution [default: from the source]
    #[arg(long)]
    pub(crate) name: Option<DistroName>,
    /// More packages beside the minimal system with ip, ping and ps; separated by commas, may be repeated
    #[arg(long, value_name = "PKG,…", value_delimiter = ',')]
    pub(crate) include: Vec<String>,
    /// Make it the default distribution
    #[arg(long)]
    pub(crate) set_default: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_chooses_the_format() {
        for (file, want) in [
            ("a.tar", Format::Tar),
            ("a.tar.gz", Format::TarGz),
            ("A.TGZ", Format::TarGz),
            ("a.wsl", Format::TarGz),
            ("a.b.tar.xz", Format::TarXz),
            ("a.tar.zst", Format::TarZst),
            ("a.gz", Format::Tar),
            ("-", Format::Tar),
        ] {
            assert_eq!(Format::of_file(Path::new(file)), want, "{file}");
        }
        for format in Format::value_variants() {
            assert_eq!(
                format
                    .to_possible_value()
                    .expect("no variant is skipped")
                    .get_name(),
                format.as_str()
            );
        }
    }
}
