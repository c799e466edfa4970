//! Reads every file of an ext4 image and tells how long it took.
//!
//! `cargo run --release -p hostel-disk --example walk_ext4 -- RAW`, or `OVERLAY BASE` for a qcow2 overlay over a raw base.

#![expect(clippy::print_stderr, reason = "a program that tells its result")]

use std::{io, path::Path, time::Instant};

use hostel_disk::{BlockSource, FileSource, ext4::Reader, overlay::open_chain};
use hostel_model::tree::{Node, NodeMeta, TreeSink};

#[derive(Default)]
struct Count {
    entries: u64,
    bytes: u64,
}

impl TreeSink for Count {
    fn entry(&mut self, _: &[u8], _: &NodeMeta, node: Node<'_>) -> io::Result<()> {
        self.entries += 1;
        if let Node::File { data, .. } = node {
            self.bytes += io::copy(data, &mut io::sink())?;
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let start = Instant::now();
    let source: Box<dyn BlockSource> = match args.as_slice() {
        [raw] => Box::new(FileSource::open(Path::new(raw))?),
        [overlay, base] => Box::new(open_chain(Path::new(overlay), Path::new(base))?),
        _ => return Err("usage: walk_ext4 RAW | OVERLAY BASE".into()),
    };
    let mut count = Count::default();
    Reader::open(source)?.walk(&mut count)?;
    eprintln!(
        "{} files, {} MiB in {:?}",
        count.entries,
        count.bytes >> 20,
        start.elapsed()
    );
    Ok(())
}
