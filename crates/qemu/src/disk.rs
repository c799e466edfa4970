//! Disks of a running machine: explicit block nodes under a SCSI disk, and the table of units.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::qmp::QmpError;

/// The most disks a machine has at once; unit 0 stays free.
pub const MAX_DISKS: usize = 254;

/// A disk to plug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachDisk {
    /// By this the guest finds it (`vpd_pg80`): 1 to 20 letters, digits, `-` and `_`.
    pub serial: String,
    /// What is at the bottom.
    pub base: DiskFile,
    /// A qcow2 file that takes every write; the base is then never written. Its own backing file entry is not used.
    pub overlay: Option<PathBuf>,
    /// The guest may not write.
    pub read_only: bool,
}

/// A disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFile {
    /// Where it is.
    pub path: PathBuf,
    /// How it is made. Never guessed from the content: the guest writes the content.
    pub format: DiskFormat,
}

/// A format of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes as they are.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// That of the reference's `ext4.vhdx`.
    Vhdx,
}

impl DiskFormat {
    const fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
        }
    }
}

/// Why a disk was not plugged or unplugged.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Not a serial.
    #[error("`{0}` is not a disk serial of 1 to 20 letters, digits, `-` and `_`")]
    Serial(String),
    /// QEMU's protocol is UTF-8.
    #[error("the path `{0}` is not UTF-8")]
    Path(PathBuf),
    /// A disk of that serial is plugged.
    #[error("disk `{0}` is attached already")]
    Attached(String),
    /// [`MAX_DISKS`] are plugged.
    #[error("the VM has {MAX_DISKS} disks already")]
    Full,
    /// QEMU refused or is gone.
    #[error("cannot attach disk `{serial}` from `{path}`")]
    Attach {
        /// The disk.
        serial: String,
        /// The file that is written, or the base.
        path: PathBuf,
        /// The cause.
        source: QmpError,
    },
    /// QEMU refused or is gone.
    #[error("cannot detach disk `{serial}`")]
    Detach {
        /// The disk.
        serial: String,
        /// The cause.
        source: QmpError,
    },
}

/// Which unit a serial has. Kept by us, so that a saved machine can be given the same units again.
#[derive(Debug, Default)]
pub(crate) struct DiskTable(Vec<(u8, AttachDisk)>);

impl DiskTable {
    /// Takes the lowest free unit.
    pub(crate) fn reserve(&mut self, disk: &AttachDisk) -> Result<u8, DiskError> {
        if self.0.iter().any(|(_, d)| d.serial == disk.serial) {
            return Err(DiskError::Attached(disk.serial.clone()));
        }
        let free = (1..=MAX_DISKS as u8).find(|lun| self.0.iter().all(|(l, _)| l != lun));
        let lun = free.ok_or(DiskError::Full)?;
        self.0.push((lun, disk.clone()));
        Ok(lun)
    }

    pub(crate) fn release(&mut self, serial: &str) {
        self.0.retain(|(_, d)| d.serial != serial);
    }

    pub(crate) fn get(&self, serial: &str) -> Option<&AttachDisk> {
        self.0
            .iter()
            .find(|(_, d)| d.serial == serial)
            .map(|(_, d)| d)
    }

    /// Returns units and disks, by unit.
    pub(crate) fn list(&self) -> Vec<(u8, AttachDisk)> {
        let mut list = self.0.clone();
        list.sort_by_key(|(lun, _)| *lun);
        list
    }
}

/// The nodes of a disk from bottom to top, and the id of its device.
#[derive(Debug, PartialEq)]
pub(crate) struct DiskNodes {
    /// Names and descriptions for `blockdev-add`, in the order they are added; removed in the other.
    pub(crate) nodes: Vec<(String, Value)>,
    pub(crate) device: String,
}

/// Describes the nodes of a disk.
pub(crate) fn nodes(disk: &AttachDisk) -> Result<DiskNodes, DiskError> {
    let serial = &disk.serial;
    let fits = (1..=20).contains(&serial.len());
    if !fits
        || !serial
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    {
        return Err(DiskError::Serial(serial.clone()));
    }
    let base_read_only = disk.read_only || disk.overlay.is_some();
    let base = format!("b-{serial}");
    let format = disk.base.format.driver();
    let mut nodes = vec![(
        base.clone(),
        node(&base, format, utf8(&disk.base.path)?, base_read_only),
    )];
    if let Some(overlay) = &disk.overlay {
        let name = format!("o-{serial}");
        let mut value = node(&name, "qcow2", utf8(overlay)?, disk.read_only);
        value["backing"] = json!(base);
        nodes.push((name, value));
    }
    Ok(DiskNodes {
        nodes,
        device: format!("d-{serial}"),
    })
}

fn node(name: &str, driver: &str, filename: &str, read_only: bool) -> Value {
    let mut value = json!({
        "node-name": name,
        "driver": driver,
        "read-only": read_only,
        // What the guest discards is given back to the host's file system.
        "discard": "unmap",
        "file": {
            "driver": "file",
            "filename": filename,
            "read-only": read_only,
            "discard": "unmap",
        },
    });
    if driver == "qcow2" {
        value["pass-discard-request"] = json!(true);
    }
    value
}

/// Describes the SCSI disk on top.
pub(crate) fn scsi_disk(disk: &AttachDisk, top: &str, lun: u8) -> Value {
    json!({
        "drive": top,
        "bus": format!("{}.0", crate::args::SCSI_ID),
        "channel": 0,
        "scsi-id": 0,
        "lun": lun,
        "serial": disk.serial,
        "device_id": disk.serial,
        // A full or failing disk of the host is one distribution's error, and no reason to pause all of them.
        "werror": "report",
        "rerror": "report",
    })
}

fn utf8(path: &Path) -> Result<&str, DiskError> {
    path.to_str()
        .ok_or_else(|| DiskError::Path(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    fn disk(serial: &str) -> AttachDisk {
        AttachDisk {
            serial: serial.into(),
            base: DiskFile {
                path: "/b.raw".into(),
                format: DiskFormat::Raw,
            },
            overlay: Some("/o.qcow2".into()),
            read_only: false,
        }
    }

    #[test]
    fn an_overlay_is_written_and_its_base_is_not() {
        let described = nodes(&disk("abc")).unwrap();
        assert_eq!(described.device, "d-abc");
        let [(base, b), (overlay, o)] = &described.nodes[..] else {
            panic!("two nodes")
        };
        assert_eq!((base.as_str(), overlay.as_str()), ("b-abc", "o-abc"));
        assert_eq!(
            (&b["read-only"], &b["file"]["read-only"], &b["driver"]),
            (&json!(true), &json!(true), &json!("raw"))
        );
        assert_eq!(
            (&o["read-only"], &o["backing"]),
            (&json!(false), &json!("b-abc"))
        );
        let mut plain = disk("abc");
        plain.overlay = None;
        assert_eq!(nodes(&plain).unwrap().nodes[0].1["read-only"], json!(false));
    }

    #[test]
    fn serials_and_paths_are_checked() {
        for bad in ["", "a b", "a,b", "é", &"x".repeat(21)] {
            assert!(
                matches!(nodes(&disk(bad)), Err(DiskError::Serial(_))),
                "{bad}"
            );
        }
        let mut odd = disk("a");
        odd.overlay = Some(PathBuf::from(std::ffi::OsStr::from_bytes(b"/\xff")));
        assert!(matches!(nodes(&odd), Err(DiskError::Path(_))));
    }

    #[test]
    fn units_are_given_once_and_again_after_release() {
        let mut table = DiskTable::default();
        for i in 1..=MAX_DISKS {
            assert_eq!(table.reserve(&disk(&format!("s{i}"))).unwrap() as usize, i);
        }
        assert!(matches!(
            table.reserve(&disk("one-more")),
            Err(DiskError::Full)
        ));
        assert!(matches!(
            table.reserve(&disk("s3")),
            Err(DiskError::Attached(_))
        ));
        table.release("s7");
        assert_eq!(table.reserve(&disk("new")).unwrap(), 7);
        assert_eq!(table.list()[6].1.serial, "new");
    }
}
