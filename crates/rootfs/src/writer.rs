//! Writes a tree as a pax archive.

use std::io::{self, Read, Write};

use hostel_model::tree::{DataRun, Node, NodeMeta, TreeSink, normalise};

use crate::{
    Format, acl,
    errors::shown,
    format::Encoder,
    header::{BLOCK, Fields, octal_max},
    pax::Records,
    sparse,
};

/// GNU tar's record: archives end on a whole one.
const RECORD: u64 = 20 * BLOCK as u64;

/// What an archive got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteSummary {
    /// Members written.
    pub members: u64,
    /// Bytes of file data written; holes do not count.
    pub bytes: u64,
    /// Sockets that were left out: tar cannot hold them, and their servers make them anew.
    pub sockets_left_out: u64,
}

/// A sink that writes what it gets as a tar archive, `./` before every name (EXP-1).
///
/// What a plain header cannot hold goes into pax headers: long and non-ASCII names, nanoseconds, large numbers,
/// attributes as `SCHILY.xattr.*`, ACLs as `SCHILY.acl.*` with numeric ids, sparse files as `GNU.sparse` 1.0. GNU tar and
/// bsdtar read it all back. The same entries in the same order give the same bytes.
///
/// Without [`finish`](Self::finish) the archive has no end: what was written is of no use then, and the caller removes it.
pub struct ArchiveWriter<W: Write> {
    out: Encoder<W>,
    position: u64,
    summary: WriteSummary,
    buffer: Vec<u8>,
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins an archive.
    pub fn new(out: W, format: Format) -> io::Result<Self> {
        let out = Encoder::new(out, format)?;
        Ok(Self {
            out,
            position: 0,
            summary: WriteSummary::default(),
            buffer: vec![0; 256 << 10],
        })
    }

    /// Ends the archive and returns the output, which has everything but is not synced.
    pub fn finish(mut self) -> io::Result<(W, WriteSummary)> {
        let end = (self.position + 2 * BLOCK as u64).next_multiple_of(RECORD);
        let padding = vec![0; (end - self.position) as usize];
        self.put(&padding)?;
        Ok((self.out.finish()?, self.summary))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let short = self.position.next_multiple_of(BLOCK as u64) - self.position;
        self.put(&[0; BLOCK][..short as usize])
    }

    /// Writes an extended header when there are records, then the header itself.
    fn header(&mut self, records: &Records, fields: &Fields<'_>) -> io::Result<()> {
        let body = records.bytes();
        if !body.is_empty() {
            let base = fields.name.strip_suffix(b"/").unwrap_or(fields.name);
            let base = base.rsplit(|b| *b == b'/').next().unwrap_or(base);
            let name = [b"./PaxHeaders/", &base[..base.len().min(80)]].concat();
            let header = Fields {
                name: &name,
                kind: b'x',
                mode: 0o644,
                size: body.len() as u64,
                ..Fields::default()
            };
            self.put(&header.encode())?;
            self.put(body)?;
            self.pad()?;
        }
        self.put(&fields.encode())
    }

    fn data(&mut self, path: &[u8], data: &mut dyn Read, size: u64) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let want = self
                .buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match data.read(&mut self.buffer[..want]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if read == 0 {
                let message = format!("`{}` ended {left} bytes early", shown(path));
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
            self.position += read as u64;
            self.out.write_all(&self.buffer[..read])?;
            left -= read as u64;
        }
        self.summary.bytes += size;
        self.pad()
    }
}

impl<W: Write> TreeSink for ArchiveWriter<W> {
    fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Node<'_>) -> io::Result<()> {
        if normalise(path).as_deref() != Some(path) || meta.mtime_nsec > 999_999_999 {
            return Err(invalid(
                path,
                "has a name or a time that an archive cannot hold",
            ));
        }
        let is_directory = matches!(node, Node::Directory);
        let name = member_name(path, is_directory);
        let mut records = Records::default();
        let mut fields = Fields {
            mode: meta.mode & 0o7777,
            ..Fields::default()
        };
        let link = match node {
            Node::Socket => {
                self.summary.sockets_left_out += 1;
                return Ok(());
            }
            Node::Symlink(target) => target.to_vec(),
            Node::HardLink(target) => member_name(target, false),
            _ => Vec::new(),
        };

        // A sparse member's real name is in its own keyword; the ordinary one tells old programs what it is.
        let mut map = Vec::new();
        let mut sparse_name = None;
        if let Node::File { size, runs, .. } = &node {
            let runs = merged(path, *size, runs)?;
            fields.size = runs.iter().map(|run| run.len).sum();
            if fields.size != *size {
                map = sparse::encode_map(*size, &runs);
                fields.size += map.len() as u64;
                records.push(b"GNU.sparse.major", b"1");
                records.push(b"GNU.sparse.minor", b"0");
                records.push(b"GNU.sparse.name", &name);
                records.push(b"GNU.sparse.realsize", size.to_string().as_bytes());
                let (parent, base) =
                    name.split_at(name.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1));
                sparse_name = Some([parent, b"GNUSparseFile.0/", base].concat());
            }
        }

        let placed = place(sparse_name.as_deref().unwrap_or(&name));
        let fits = placed.is_some();
        (fields.prefix, fields.name) = placed.unwrap_or((b"", &name[..name.len().min(100)]));
        fields.link_name = &link[..link.len().min(100)];
        let path_record = sparse_name.is_none() && (!fits || wants_record(&name));
        let link_record = link.len() > 100 || wants_record(&link);
        let utf8 = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
        if (path_record && !utf8(&name)) || (link_record && !utf8(&link)) {
            records.push(b"hdrcharset", b"BINARY");
        }
        if path_record {
            records.push(b"path", &name);
        }
        if link_record {
            records.push(b"linkpath", &link);
        }
        let mut number = |key: &[u8], value: u64, width| {
            if value <= octal_max(width) {
                return value;
            }
            records.push(key, value.to_string().as_bytes());
            0
        };
        fields.uid = number(b"uid", u64::from(meta.uid), 8) as u32;
        fields.gid = number(b"gid", u64::from(meta.gid), 8) as u32;
        fields.size = number(b"size", fields.size, 12);
        let in_header = u64::try_from(meta.mtime).is_ok_and(|time| time <= octal_max(12));
        if in_header {
            fields.mtime = meta.mtime as u64;
        }
        if !in_header || meta.mtime_nsec != 0 {
            records.push(b"mtime", time(meta.mtime, meta.mtime_nsec).as_bytes());
        }
        push_attributes(&mut records, meta);

        self.summary.members += 1;
        match node {
            Node::Directory => fields.kind = b'5',
            Node::Symlink(_) => fields.kind = b'2',
            Node::HardLink(_) => fields.kind = b'1',
            Node::Fifo => fields.kind = b'6',
            Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
                fields.kind = if matches!(node, Node::CharDevice { .. }) {
                    b'3'
                } else {
                    b'4'
                };
                if u64::from(major.max(minor)) > octal_max(8) {
                    records.push(b"SCHILY.devmajor", major.to_string().as_bytes());
                    records.push(b"SCHILY.devminor", minor.to_string().as_bytes());
                } else {
                    fields.device = Some((major, minor));
                }
            }
            Node::File { runs, data, .. } => {
                fields.kind = b'0';
                self.header(&records, &fields)?;
                self.put(&map)?;
                return self.data(path, data, runs.iter().map(|run| run.len).sum());
            }
            Node::Socket => unreachable!("sockets were left out above"),
        }
        self.header(&records, &fields)
    }
}

fn invalid(path: &[u8], what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("`{}` {what}", shown(path)),
    )
}

fn member_name(path: &[u8], is_directory: bool) -> Vec<u8> {
    let slash: &[u8] = if is_directory && !path.is_empty() {
        b"/"
    } else {
        b""
    };
    [b"./", path, slash].concat()
}

/// Splits a name over the header's prefix and name fields; `None` when it fits neither way.
fn place(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 {
        return Some((b"", name));
    }
    let split = |at: &usize| *at <= 155 && name.len() - at - 1 <= 100 && at + 1 < name.len();
    let at = name
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'/')
        .map(|(at, _)| at)
        .find(split)?;
    Some((&name[..at], &name[at + 1..]))
}

/// Non-ASCII text is also given as a record, whose encoding is defined. Other bytes are best left in the header, where
/// nobody converts them.
fn wants_record(name: &[u8]) -> bool {
    !name.is_ascii() && std::str::from_utf8(name).is_ok()
}

/// Checks the runs and joins those that touch.
fn merged(path: &[u8], size: u64, runs: &[DataRun]) -> io::Result<Vec<DataRun>> {
    let sum = runs
        .iter()
        .try_fold(0u64, |sum, run| sum.checked_add(run.len));
    let mut checked = runs.to_vec();
    sum.and_then(|sum| sparse::check(size, sum, &mut checked).ok())
        .ok_or_else(|| invalid(path, "has a map of its data that contradicts its size"))?;
    let mut out: Vec<DataRun> = Vec::with_capacity(checked.len());
    for run in checked {
        match out.last_mut() {
            Some(last) if last.offset + last.len == run.offset => last.len += run.len,
            _ => out.push(run),
        }
    }
    Ok(out)
}

/// Writes a time as seconds with as many decimals as it needs.
fn time(seconds: i64, nanos: u32) -> String {
    let (sign, whole, fraction) = match (seconds < 0, nanos) {
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
        (false, _) => ("", seconds.unsigned_abs(), nanos),
    };
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn push_attributes(records: &mut Records, meta: &NodeMeta) {
    let mut xattrs: Vec<&(Vec<u8>, Vec<u8>)> = meta.xattrs.iter().collect();
    xattrs.sort();
    for (name, value) in xattrs {
        let keyword = match &name[..] {
            acl::ACCESS => Some(&b"SCHILY.acl.access"[..]),
            acl::DEFAULT => Some(&b"SCHILY.acl.default"[..]),
            _ => None,
        };
        match keyword.and_then(|keyword| Some((keyword, acl::to_text(value)?))) {
            Some((keyword, text)) => records.push(keyword, text.as_bytes()),
            None => records.push_xattr(name, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_shortest() {
        for (seconds, nanos, want) in [
            (0, 0, "0"),
            (100, 0, "100"),
            (1, 500_000_000, "1.5"),
            (1, 1, "1.000000001"),
            (-1, 500_000_000, "-0.5"),
            (-2, 0, "-2"),
            (-2, 1, "-1.999999999"),
            (i64::MIN, 1, "-9223372036854775807.999999999"),
        ] {
            assert_eq!(time(seconds, nanos), want);
        }
    }

    #[test]
    fn names_are_split_where_they_fit() {
        let long = format!("./{}/{}", "d".repeat(120), "f".repeat(100));
        let (prefix, name) = place(long.as_bytes()).expect("fits");
        assert_eq!((prefix.len(), name.len()), (122, 100));
        assert!(place(format!("./{}", "f".repeat(120)).as_bytes()).is_none());
        assert!(place(format!("./{}/", "d".repeat(120)).as_bytes()).is_none());
    }

    #[test]
    fn a_contradicting_map_or_short_data_is_an_error() {
        let mut writer = ArchiveWriter::new(Vec::new(), Format::Tar).unwrap();
        let meta = NodeMeta::default();
        let runs = [DataRun { offset: 5, len: 10 }];
        let bad = writer.entry(
            b"a",
            &meta,
            Node::File {
                size: 10,
                runs: &runs,
                data: &mut io::repeat(0),
            },
        );
        assert_eq!(bad.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let short = writer.entry(
            b"a",
            &meta,
            Node::File {
                size: 15,
                runs: &runs,
                data: &mut &b"123"[..],
            },
        );
        assert_eq!(short.unwrap_err().to_string(), "`a` ended 7 bytes early");
        assert!(writer.entry(b"a/../b", &meta, Node::Fifo).is_err());
    }
}
