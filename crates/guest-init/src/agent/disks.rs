//! Finding SCSI disks by the serial that the host gave them (SPC, vital product data page 0x80).

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::uevents::Uevents;

/// How long a disk may take to appear (BOOT-10).
const APPEAR: Duration = Duration::from_secs(15);

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("`{0}` is not a serial of a disk")]
    BadSerial(String),
    #[error("no disk with serial `{serial}` appeared within {} seconds", APPEAR.as_secs())]
    Missing { serial: String },
    #[error("cannot listen for devices")]
    Listen(#[source] std::io::Error),
}

/// One disk of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The kernel's name: `sda`.
    pub(crate) name: String,
}

impl Disk {
    /// Returns the device node.
    pub(crate) fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

/// Waits for the disk with a serial. Cancel safe.
pub(crate) async fn wait_for(serial: &str) -> Result<Disk, DiskError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if serial.is_empty() || serial.len() > 36 || !serial.chars().all(fits) {
        return Err(DiskError::BadSerial(serial.chars().take(36).collect()));
    }
    // The kernel shows a disk before it makes the node, and has the node before the disk answers (ENXIO).
    let opens = |disk: &Disk| fs_err::File::open(disk.node()).is_ok();
    let look = || look(Path::new("/sys/block"), serial).filter(opens);
    if let Some(disk) = look() {
        return Ok(disk);
    }
    let events = Uevents::subscribe().map_err(DiskError::Listen)?;
    events
        .wait_for(APPEAR, look)
        .await
        .ok_or_else(|| DiskError::Missing {
            serial: serial.to_owned(),
        })
}

fn look(block: &Path, serial: &str) -> Option<Disk> {
    fs_err::read_dir(block)
        .ok()?
        .filter_map(Result::ok)
        .find_map(|entry| {
            let page = fs_err::read(entry.path().join("device/vpd_pg80")).ok()?;
            (serial_of(&page)? == serial).then(|| Disk {
                name: entry.file_name().to_string_lossy().into_owned(),
            })
        })
}

/// Returns the serial in a vital product data page 0x80: four bytes of header, the last two the length.
fn serial_of(page: &[u8]) -> Option<&str> {
    let (header, rest) = page.split_at_checked(4)?;
    if header[1] != 0x80 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let text = std::str::from_utf8(rest.get(..length)?).ok()?;
    Some(text.trim_matches([' ', '\0']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_read_from_the_page() {
        let cases: [(&[u8], Option<&str>); 7] = [
            (b"\0\x80\0\x04WSL1", Some("WSL1")),
            (b"\0\x80\0\x06  ab  rest", Some("ab")),
            (b"\0\x80\0\x09short", None),
            (b"\0\x83\0\x04WSL1", None),
            (b"\0\x80\0", None),
            (b"", None),
            (b"\0\x80\0\x02\xff\xfe", None),
        ];
        for (page, want) in cases {
            assert_eq!(serial_of(page), want, "{page:?}");
        }
    }

    #[test]
    fn a_disk_is_found_among_others() {
        let dir = tempfile::tempdir().unwrap();
        for (name, page) in [
            ("sda", &b"\0\x80\0\x01a"[..]),
            ("sdb", b"\0\x80\0\x01b"),
            ("sr0", b""),
        ] {
            let device = dir.path().join(name).join("device");
            fs_err::create_dir_all(&device).unwrap();
            if !page.is_empty() {
                fs_err::write(device.join("vpd_pg80"), page).unwrap();
            }
        }
        assert_eq!(look(dir.path(), "b"), Some(Disk { name: "sdb".into() }));
        assert_eq!(look(dir.path(), "c"), None);
    }

    #[tokio::test]
    async fn a_serial_that_is_none_is_refused_at_once() {
        assert!(matches!(
            wait_for("../x").await,
            Err(DiskError::BadSerial(_))
        ));
        assert!(matches!(wait_for("").await, Err(DiskError::BadSerial(_))));
    }
}
