//! Makes an ext4 image from an uncompressed tar archive and tells how long it took.
//!
//! `cargo run --release -p hostel-disk --example make_ext4 -- ARCHIVE IMAGE`. A yardstick of the writer alone: it knows
//! the tar forms that Debian's archives use, the real importer is the `rootfs` crate.

#![expect(clippy::print_stderr, reason = "a program that tells its result")]

use std::{io::Read, time::Instant};

use hostel_disk::ext4::{Options, Writer};
use hostel_model::tree::{DataRun, Node, NodeMeta, TreeSink, normalise};
use tar::EntryType;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(archive), Some(image)) = (args.next(), args.next()) else {
        return Err("usage: make_ext4 ARCHIVE IMAGE".into());
    };
    let start = Instant::now();
    let mut archive = tar::Archive::new(std::io::BufReader::with_capacity(
        1 << 20,
        fs_err::File::open(archive)?,
    ));
    let mut writer = Writer::create(image, {
        let mut o = Options::new(uuid::Uuid::from_u128(1));
        if let Some(mib) = args
            .next()
            .and_then(|a| a.to_str().and_then(|a| a.parse().ok()))
        {
            o.size = hostel_model::Bytes::mib(mib);
        }
        o
    })?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = normalise(&entry.path_bytes()).ok_or("a path climbs out")?;
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                    xattrs.push((name.to_vec(), extension.value_bytes().to_vec()));
                }
            }
        }
        let header = entry.header().clone();
        let meta = NodeMeta {
            mode: (header.mode()? & 0o7777) as u16,
            uid: header.uid()? as u32,
            gid: header.gid()? as u32,
            mtime: header.mtime()? as i64,
            mtime_nsec: 0,
            xattrs,
        };
        let target = entry
            .link_name_bytes()
            .map(std::borrow::Cow::into_owned)
            .unwrap_or_default();
        let (major, minor) = (number(header.device_major()), number(header.device_minor()));
        let size = entry.size();
        match header.entry_type() {
            EntryType::Directory => writer.entry(&path, &meta, Node::Directory)?,
            EntryType::Symlink => writer.entry(&path, &meta, Node::Symlink(&target))?,
            EntryType::Link => {
                let target = normalise(&target).ok_or("a link climbs out")?;
                writer.entry(&path, &meta, Node::HardLink(&target))?;
            }
            EntryType::Char => writer.entry(&path, &meta, Node::CharDevice { major, minor })?,
            EntryType::Block => writer.entry(&path, &meta, Node::BlockDevice { major, minor })?,
            EntryType::Fifo => writer.entry(&path, &meta, Node::Fifo)?,
            _ => {
                let runs = [DataRun {
                    offset: 0,
                    len: size,
                }];
                let data: &mut dyn Read = &mut entry;
                writer.entry(
                    &path,
                    &meta,
                    Node::File {
                        size,
                        runs: &runs,
                        data,
                    },
                )?;
            }
        }
    }
    let summary = writer.finish()?;
    eprintln!("{} files in {:?}", summary.files, start.elapsed());
    Ok(())
}

/// Fields of devices are blank in most headers.
fn number(field: std::io::Result<Option<u32>>) -> u32 {
    field.ok().flatten().unwrap_or(0)
}
