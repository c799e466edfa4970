//! Reads an archive into a tree.

use std::{
    collections::HashMap,
    io::{self, Read},
};

use hostel_model::tree::{DataRun, Node, NodeMeta, TreeSink, normalise};

use crate::{
    Compression, Facts, FactsSink, ReadError,
    acl::{self, AclError},
    decode::{Source, looks_like, open, recognise},
    errors::shown,
    header::{BLOCK, Block, Header},
    pax::Extended,
    sparse::{self, MapReader, SparseForm},
    stream::{MemberData, Stream},
};

/// The largest extended header or long name, in bytes. A sparse file's map may be in one.
const MAX_EXTENSION: u64 = 32 << 20;
/// The longest path, in bytes.
const MAX_PATH: usize = 64 << 10;
/// The longest target of a symbolic link: the kernel takes no more.
const MAX_TARGET: usize = 4095;
/// How much may follow the end of the archive and is still read.
const MAX_TAIL: u64 = 64 << 20;
/// How many warnings are kept; the rest is counted.
const MAX_WARNINGS: usize = 100;
/// How many names of users and groups are learned from headers, for ACLs.
const MAX_OWNERS: usize = 10_000;

/// How far reading is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes taken from the input, as they came.
    pub taken: u64,
    /// Bytes of the archive after unpacking.
    pub unpacked: u64,
    /// Members handed on so far.
    pub members: u64,
}

/// Bounds on what an archive may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// The most memory a decoder may take, in bytes: xz dictionaries and zstd windows beyond it are refused.
    pub decoder_memory: u64,
    /// The most members.
    pub max_members: u64,
}

impl Default for ReadOptions {
    /// 512 MiB for the decoder (`xz -9` needs 65, `zstd --ultra` 128, `zstd --long=29` all of it), 20 million members.
    fn default() -> Self {
        Self {
            decoder_memory: 512 << 20,
            max_members: 20_000_000,
        }
    }
}

/// What an archive held.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How it was compressed.
    pub compression: Compression,
    /// Members handed on.
    pub members: u64,
    /// Bytes of file data handed on; holes do not count.
    pub bytes: u64,
    /// What the tree says about itself.
    pub facts: Facts,
    /// What was odd, and what was done instead; at most 100.
    pub warnings: Vec<String>,
    /// How many more warnings there were.
    pub more_warnings: u64,
}

/// Reads a tar archive, plain or compressed, and hands every member to `sink`.
///
/// Reads forward only, so `input` may be a pipe; blocks as long as `input` and `sink` do. To cancel, let either
/// return an error. Memory stays bounded whatever the archive holds: some buffers, the decoder's window, one member's
/// metadata. How much *data* comes out is not bounded here: a small archive can unpack to any size, and `sink`, which
/// knows its disk, must refuse what does not fit. After an error the sink holds a part of the tree; the caller throws
/// it away.
///
/// Members with `..` in their name or hard-link target are refused, absolute names are made relative as GNU tar does.
/// Targets of symbolic links are kept as they are. What follows the end of the archive is ignored (and read, up to 64
/// MiB). An archive that ends after a whole member but without an end mark is accepted with a warning.
pub fn read_archive<R: Read>(
    input: R,
    sink: &mut dyn TreeSink,
    options: &ReadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, ReadError> {
    let (mut source, raw) = Source::new(input);
    let input_error = |error| {
        raw.borrow_mut()
            .failure
            .take()
            .map_or(ReadError::Input(error), ReadError::Input)
    };
    let first = source.peek(2 * 1024).map_err(input_error)?;
    if first.is_empty() {
        return Err(ReadError::Empty);
    }
    let compression = recognise(first);
    if compression == Compression::None {
        let is_tar = first
            .first_chunk()
            .is_some_and(|block| is_zero(block) || Header(block).checksum_fits());
        if !is_tar {
            return Err(ReadError::NotAnArchive {
                looks_like: looks_like(first),
            });
        }
    }
    let unpacked = open(source, compression, options.decoder_memory).map_err(|source| {
        ReadError::Compression {
            format: compression,
            member: None,
            source,
        }
    })?;
    let mut reader = Reader {
        stream: Stream::new(unpacked, compression, raw, progress),
        max_members: options.max_members,
        bytes: 0,
        warnings: Vec::new(),
        more_warnings: 0,
        users: HashMap::new(),
        groups: HashMap::new(),
    };
    let mut sink = FactsSink::new(sink);
    reader.run(&mut sink)?;
    reader.stream.tell();
    Ok(Summary {
        compression,
        members: reader.stream.members,
        bytes: reader.bytes,
        facts: sink.facts(),
        warnings: reader.warnings,
        more_warnings: reader.more_warnings,
    })
}

struct Reader<'a> {
    stream: Stream<'a>,
    max_members: u64,
    bytes: u64,
    warnings: Vec<String>,
    more_warnings: u64,
    users: HashMap<Vec<u8>, u32>,
    groups: HashMap<Vec<u8>, u32>,
}

/// What precedes a member's own header.
#[derive(Default)]
struct Before {
    global: Extended,
    local: Option<Extended>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Reader<'_> {
    fn run(&mut self, sink: &mut dyn TreeSink) -> Result<(), ReadError> {
        let mut before = Before::default();
        loop {
            let offset = self.stream.position;
            let pending =
                before.local.is_some() || before.long_name.is_some() || before.long_link.is_some();
            let Some(block) = self.stream.block()? else {
                // Bytes that are no compressed data where more had to come are damage, not a tail.
                if pending || self.stream.raw.borrow().trailing_garbage {
                    return Err(self.stream.truncated());
                }
                if self.stream.members > 0 {
                    self.warn(
                        "the archive has no end mark; it may be cut short between two members"
                            .to_owned(),
                    );
                }
                break;
            };
            if is_zero(&block) {
                if pending {
                    return Err(ReadError::Damaged {
                        offset,
                        what: "it ends between a member's headers",
                    });
                }
                self.end()?;
                break;
            }
            let header = Header(&block);
            if !header.checksum_fits() {
                return Err(match offset {
                    0 => ReadError::NotAnArchive {
                        looks_like: looks_like(&block),
                    },
                    _ => ReadError::Damaged {
                        offset,
                        what: "a header's checksum does not fit",
                    },
                });
            }
            match header.kind() {
                b'x' | b'X' => {
                    let records = self.extension(header)?;
                    let mut local = before.local.take().unwrap_or_else(|| before.global.clone());
                    local
                        .apply(&records)
                        .map_err(|what| ReadError::bad(&header.name(), what))?;
                    before.local = Some(local);
                }
                b'g' => {
                    let records = self.extension(header)?;
                    before
                        .global
                        .apply(&records)
                        .map_err(|what| ReadError::bad(&header.name(), what))?;
                }
                b'L' => before.long_name = Some(until_nul(self.extension(header)?)),
                b'K' => before.long_link = Some(until_nul(self.extension(header)?)),
                // A volume's label is no member.
                b'V' => {}
                b'M' => {
                    return Err(ReadError::refused(
                        &header.name(),
                        "it continues on another volume",
                    ));
                }
                _ => {
                    let extended = before.local.take().unwrap_or_else(|| before.global.clone());
                    let names = (before.long_name.take(), before.long_link.take());
                    self.member(&block, extended, names, sink)?;
                }
            }
        }
        if self.stream.members == 0 {
            return Err(ReadError::Empty);
        }
        if self.stream.raw.borrow().trailing_garbage {
            self.warn("bytes after the compressed data were ignored".to_owned());
        }
        Ok(())
    }

    /// Deals with what follows a block of zeros.
    fn end(&mut self) -> Result<(), ReadError> {
        self.stream.member = None;
        match self.stream.block()? {
            None => self.warn("the archive's end mark is only half there".to_owned()),
            Some(second) if !is_zero(&second) => {
                self.warn(
                    "a lone block of zeros ends the archive; what follows it was ignored"
                        .to_owned(),
                );
            }
            Some(_) => {}
        }
        self.stream.drain(MAX_TAIL)
    }

    fn warn(&mut self, text: String) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(text);
        } else {
            self.more_warnings += 1;
        }
    }

    /// Reads the data of an extended header or a long name.
    fn extension(&mut self, header: Header<'_>) -> Result<Vec<u8>, ReadError> {
        let size = header
            .size()
            .ok_or_else(|| ReadError::bad(&header.name(), "its size is not a number"))?;
        if size > MAX_EXTENSION {
            return Err(ReadError::bad(
                &header.name(),
                "its extended header is too large",
            ));
        }
        self.stream.member = Some(header.name());
        let mut bytes = Vec::new();
        // Grows with what really comes, not with what the header claims.
        let mut left = size.next_multiple_of(BLOCK as u64);
        while left > 0 {
            bytes.extend_from_slice(&self.stream.block_of_member()?);
            left -= BLOCK as u64;
        }
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    fn member(
        &mut self,
        block: &Block,
        mut extended: Extended,
        (long_name, long_link): (Option<Vec<u8>>, Option<Vec<u8>>),
        sink: &mut dyn TreeSink,
    ) -> Result<(), ReadError> {
        let header = Header(block);
        let real_name = extended.sparse.name.take();
        let name = real_name
            .or(extended.path.take())
            .or(long_name)
            .unwrap_or_else(|| header.name());
        self.stream.member = Some(name.clone());
        let bad = |what| ReadError::bad(&name, what);
        let refused = |why| ReadError::refused(&name, why);
        if self.stream.members == self.max_members {
            return Err(ReadError::TooMany(self.max_members));
        }

        let path = normalise(&name)
            .ok_or_else(|| refused("its name climbs out of the archive or holds a NUL byte"))?;
        if path.len() > MAX_PATH || path.split(|b| *b == b'/').any(|part| part.len() > 255) {
            return Err(refused("its name is longer than Linux allows"));
        }
        if name.is_empty() {
            return Err(bad("it has no name"));
        }
        let kind = match header.kind() {
            // Before there was a type for directories, a slash at the end told them.
            0 | b'0' | b'7' if name.ends_with(b"/") => b'5',
            0 | b'0' | b'7' => b'0',
            kind @ b'1'..=b'6' => kind,
            // GNU tar's incremental dump of a directory: its data is a list of names.
            b'D' => b'D',
            b'S' => b'S',
            other => {
                self.warn(format!(
                    "`{}` has the unknown type `{}` and was taken for a file",
                    shown(&name),
                    other.escape_ascii()
                ));
                b'0'
            }
        };
        if path.is_empty() && !matches!(kind, b'5' | b'D') {
            return Err(refused("the root can only be a directory"));
        }

        let meta = self.meta(header, &mut extended, &name, kind)?;
        let size = match extended.size {
            Some(size) => size,
            None => header
                .size()
                .ok_or_else(|| bad("its size is not a number"))?,
        };
        if size > i64::MAX as u64 - BLOCK as u64 {
            return Err(bad("its size exceeds every reason"));
        }
        self.stream.members += 1;
        match kind {
            b'0' => {
                let form = extended.sparse.form().map_err(bad)?;
                self.file(&path, &meta, size, form, sink)
            }
            b'S' => {
                let (real, mut runs, mut more) = sparse::old_gnu_header(block).map_err(bad)?;
                while more {
                    let block = self.stream.block_of_member()?;
                    more = sparse::old_gnu_extension(&block, &mut runs).map_err(bad)?;
                }
                self.file(
                    &path,
                    &meta,
                    size,
                    SparseForm::Header { size: real, runs },
                    sink,
                )
            }
            b'1' => {
                let target = extended
                    .link_path
                    .or(long_link)
                    .unwrap_or_else(|| header.link_name().to_vec());
                let target = normalise(&target)
                    .filter(|target| !target.is_empty())
                    .ok_or_else(|| {
                        refused("its hard link points out of the archive or to nothing")
                    })?;
                if target == path {
                    // GNU tar writes this when it was given one name twice: the file is there already.
                    self.warn(format!(
                        "`{}` is a hard link to itself and was left as it was",
                        shown(&name)
                    ));
                    return Ok(());
                }
                self.deliver(&path, &meta, Node::HardLink(&target), sink)
            }
            b'2' => {
                let target = extended
                    .link_path
                    .or(long_link)
                    .unwrap_or_else(|| header.link_name().to_vec());
                if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                    return Err(refused("its target is empty, too long or holds a NUL byte"));
                }
                self.deliver(&path, &meta, Node::Symlink(&target), sink)
            }
            b'3' | b'4' => {
                let (major, minor) = match (extended.dev_major, extended.dev_minor) {
                    (Some(major), Some(minor)) => (major, minor),
                    (major, minor) => {
                        let device = header
                            .device()
                            .ok_or_else(|| bad("its device number is not a number"))?;
                        (major.unwrap_or(device.0), minor.unwrap_or(device.1))
                    }
                };
                let node = if kind == b'3' {
                    Node::CharDevice { major, minor }
                } else {
                    Node::BlockDevice { major, minor }
                };
                self.deliver(&path, &meta, node, sink)
            }
            b'6' => self.deliver(&path, &meta, Node::Fifo, sink),
            b'D' => {
                self.deliver(&path, &meta, Node::Directory, sink)?;
                self.stream.skip(size.next_multiple_of(BLOCK as u64))
            }
            // A directory's size is at most a hint for its allocation: no data follows.
            _ => self.deliver(&path, &meta, Node::Directory, sink),
        }
    }

    fn meta(
        &mut self,
        header: Header<'_>,
        extended: &mut Extended,
        name: &[u8],
        kind: u8,
    ) -> Result<NodeMeta, ReadError> {
        let bad = |what| ReadError::bad(name, what);
        let id = |given: Option<i64>, field: Option<i64>, what| {
            given
                .or(field)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| bad(what))
        };
        let uid = id(
            extended.uid,
            header.uid(),
            "its owner is not a number that Linux allows",
        )?;
        let gid = id(
            extended.gid,
            header.gid(),
            "its group is not a number that Linux allows",
        )?;
        let mode = header
            .mode()
            .ok_or_else(|| bad("its mode is not a number"))?;
        let (mtime, mtime_nsec) = match extended.mtime {
            Some(time) => time,
            None => (
                header
                    .mtime()
                    .ok_or_else(|| bad("its time is not a number"))?,
                0,
            ),
        };
        let (user, group) = header.owner_names();
        learn(&mut self.users, user, uid);
        learn(&mut self.groups, group, gid);

        let mut xattrs = std::mem::take(&mut extended.xattrs);
        for (text, attribute) in [
            (extended.acl_access.take(), acl::ACCESS),
            (extended.acl_default.take(), acl::DEFAULT),
        ] {
            let Some(text) = text else { continue };
            // The attribute itself says it better than the text; links have no ACLs, and no attributes of their own.
            if xattrs.iter().any(|(known, _)| known == attribute) || matches!(kind, b'1' | b'2') {
                continue;
            }
            let lookup = |user: bool, name: &[u8]| {
                let known = if user { &self.users } else { &self.groups };
                known.get(name).copied().or((name == b"root").then_some(0))
            };
            match acl::to_binary(&text, attribute == acl::DEFAULT, &lookup) {
                Ok(Some(value)) => xattrs.push((attribute.to_vec(), value)),
                Ok(None) => {}
                Err(AclError::Malformed) => return Err(bad("its access control list is malformed")),
                Err(AclError::UnknownName(who)) => self.warn(format!(
                    "the access control list of `{}` was dropped: the archive does not tell the number of `{who}`",
                    shown(name)
                )),
            }
        }
        Ok(NodeMeta {
            mode: (mode & 0o7777) as u16,
            uid,
            gid,
            mtime,
            mtime_nsec,
            xattrs,
        })
    }

    fn file(
        &mut self,
        path: &[u8],
        meta: &NodeMeta,
        stored: u64,
        form: SparseForm,
        sink: &mut dyn TreeSink,
    ) -> Result<(), ReadError> {
        let bad = |what| ReadError::bad(path, what);
        let padding = stored.next_multiple_of(BLOCK as u64) - stored;
        let mut left = stored;
        let (size, mut runs) = match form {
            SparseForm::None => (
                stored,
                vec![DataRun {
                    offset: 0,
                    len: stored,
                }],
            ),
            SparseForm::Header { size, runs } => (size, runs),
            SparseForm::Data { size } => {
                let mut map = MapReader::default();
                let runs = loop {
                    left = left
                        .checked_sub(BLOCK as u64)
                        .ok_or_else(|| bad("its sparse map exceeds its data"))?;
                    let block = self.stream.block_of_member()?;
                    if let Some(runs) = map.feed(&block).map_err(bad)? {
                        break runs;
                    }
                };
                (size, runs)
            }
        };
        sparse::check(size, left, &mut runs).map_err(bad)?;
        self.bytes += left;
        let mut data = MemberData {
            stream: &mut self.stream,
            left,
        };
        let stored = sink.entry(
            path,
            meta,
            Node::File {
                size,
                runs: &runs,
                data: &mut data,
            },
        );
        let unread = data.left;
        self.check(path, stored)?;
        self.stream.skip(unread)?;
        self.stream.skip(padding)
    }

    fn deliver(
        &mut self,
        path: &[u8],
        meta: &NodeMeta,
        node: Node<'_>,
        sink: &mut dyn TreeSink,
    ) -> Result<(), ReadError> {
        let stored = sink.entry(path, meta, node);
        self.check(path, stored)
    }

    /// Prefers the archive's own trouble to what a receiver made of it.
    fn check(&mut self, path: &[u8], stored: io::Result<()>) -> Result<(), ReadError> {
        match (self.stream.failure.take(), stored) {
            (Some(failure), _) => Err(failure),
            (None, Err(source)) => Err(ReadError::Sink {
                path: shown(path),
                source,
            }),
            (None, Ok(())) => Ok(()),
        }
    }
}

fn learn(known: &mut HashMap<Vec<u8>, u32>, name: &[u8], id: u32) {
    if !name.is_empty() && known.len() < MAX_OWNERS && !known.contains_key(name) {
        known.insert(name.to_vec(), id);
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn is_zero(block: &Block) -> bool {
    block.iter().all(|b| *b == 0)
}
