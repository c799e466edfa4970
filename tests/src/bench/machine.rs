//! A machine made by hand, as like a running one of ours as it can be.

use std::{ffi::OsString, path::Path};

use anyhow::{Context, Result};

use crate::run::host;

/// The command line of a running QEMU.
pub struct CommandLine(Vec<String>);

impl CommandLine {
    /// Reads it.
    pub fn of(pid: u32) -> Result<Self> {
        let line = fs_err::read(format!("/proc/{pid}/cmdline"))?;
        let words = line
            .split(|b| *b == 0)
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .filter(|w| !w.is_empty());
        Ok(Self(words.collect()))
    }

    /// Returns the first value of a switch.
    pub fn value(&self, switch: &str) -> Option<&str> {
        self.values(switch).next()
    }

    /// Returns all values of a switch.
    pub fn values(&self, switch: &str) -> impl Iterator<Item = &str> {
        self.0
            .windows(2)
            .filter(move |pair| pair[0] == switch)
            .map(|pair| pair[1].as_str())
    }

    /// Returns the arguments for a machine with the same processor, memory, firmware, kernel and kernel command line, whose
    /// initramfs is another and which has no device but a console on standard output. Nobody else maps its memory.
    pub fn bare(&self, initrd: &Path) -> Result<Vec<OsString>> {
        let machine = self
            .value("-machine")
            .context("-machine")?
            .split(',')
            .filter(|p| !p.starts_with("memory-backend"))
            .collect::<Vec<_>>()
            .join(",");
        let mut arguments: Vec<OsString> = [
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            "-machine",
            &machine,
        ]
        .map(OsString::from)
        .into();
        for switch in [
            "-accel", "-cpu", "-smp", "-m", "-bios", "-kernel", "-append",
        ] {
            if let Some(value) = self.value(switch) {
                arguments.extend([OsString::from(switch), OsString::from(value)]);
            }
        }
        arguments.extend([OsString::from("-initrd"), initrd.into()]);
        Ok(arguments)
    }

    /// The same, with memory of the same kind, which others may map: the kernel gives such memory no huge pages.
    pub fn bare_with_shared_memory(&self, initrd: &Path) -> Result<Vec<OsString>> {
        let object = self
            .values("-object")
            .find(|o| o.starts_with("memory-backend-"))
            .context("a memory object")?;
        let size = object
            .split(',')
            .find_map(|p| p.strip_prefix("size="))
            .context("its size")?;
        let mut arguments = self.bare(initrd)?;
        arguments.extend([
            OsString::from("-object"),
            format!("memory-backend-memfd,id=mem0,size={size},share=on").into(),
            "-machine".into(),
            "memory-backend=mem0".into(),
        ]);
        Ok(arguments)
    }
}

/// An initramfs in the making: what every one of them has, which is `/bin/busybox`, `/dev/console` and the directory.
pub struct Initramfs {
    bytes: Vec<u8>,
    inode: u32,
}

impl Initramfs {
    /// Starts one with this `/init`.
    pub fn new(init: &str) -> Result<Self> {
        let busybox = host("sh", &["-c", "command -v busybox"])?.ok();
        let mut new = Self {
            bytes: Vec::new(),
            inode: 0,
        };
        for directory in ["bin", "dev", "proc", "sys"] {
            new.add(directory, 0o040_755, (0, 0), &[]);
        }
        new.file("bin/busybox", &fs_err::read(busybox)?);
        new.add("dev/console", 0o020_600, (5, 1), &[]);
        new.file("init", init.as_bytes());
        Ok(new)
    }

    /// Adds a directory.
    pub fn directory(&mut self, name: &str) {
        self.add(name, 0o040_755, (0, 0), &[]);
    }

    /// Adds an executable file.
    pub fn file(&mut self, name: &str, data: &[u8]) {
        self.add(name, 0o100_755, (0, 0), data);
    }

    /// Returns the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        let out = &mut self.bytes;
        out.extend_from_slice(b"070701");
        for field in fields {
            out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}
