//! What the tests share: a tree in memory that is both source and sink, and the programs that judge images.

use std::{collections::BTreeMap, io, path::Path, process::Command};

use hostel_disk::ext4::{Options, Writer};
use hostel_model::{
    Bytes,
    tree::{DataRun, Node, NodeMeta, TreeSink},
};
use hostel_testkit::{Need, require, skip};

/// What an entry holds, with its data in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Directory,
    File {
        size: u64,
        runs: Vec<(u64, Vec<u8>)>,
    },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

/// A file tree by path. Takes entries as a sink and gives them back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree(pub(crate) BTreeMap<Vec<u8>, (NodeMeta, Held)>);

impl TreeSink for Tree {
    fn entry(&mut self, path: &[u8], meta: &NodeMeta, node: Node<'_>) -> io::Result<()> {
        let held = match node {
            Node::Directory => Held::Directory,
            Node::File { size, runs, data } => {
                let mut all = Vec::new();
                for run in runs {
                    let mut bytes = vec![0; run.len as usize];
                    data.read_exact(&mut bytes)?;
                    all.push((run.offset, bytes));
                }
                let mut rest = Vec::new();
                data.read_to_end(&mut rest)?;
                assert!(rest.is_empty(), "more data than runs");
                Held::File { size, runs: all }
            }
            Node::Symlink(target) => Held::Symlink(target.to_vec()),
            Node::HardLink(target) => Held::HardLink(target.to_vec()),
            Node::CharDevice { major, minor } => Held::Char(major, minor),
            Node::BlockDevice { major, minor } => Held::Block(major, minor),
            Node::Fifo => Held::Fifo,
            Node::Socket => Held::Socket,
        };
        self.0.insert(path.to_vec(), (meta.clone(), held));
        Ok(())
    }
}

/// Pushes one entry.
pub(crate) fn push(
    sink: &mut dyn TreeSink,
    path: &[u8],
    meta: &NodeMeta,
    held: &Held,
) -> io::Result<()> {
    let node = match held {
        Held::Directory => Node::Directory,
        Held::File { size, runs } => {
            let list: Vec<DataRun> = runs
                .iter()
                .map(|(offset, data)| DataRun {
                    offset: *offset,
                    len: data.len() as u64,
                })
                .collect();
            let joined: Vec<u8> = runs.iter().flat_map(|(_, data)| data).copied().collect();
            return sink.entry(
                path,
                meta,
                Node::File {
                    size: *size,
                    runs: &list,
                    data: &mut joined.as_slice(),
                },
            );
        }
        Held::Symlink(target) => Node::Symlink(target),
        Held::HardLink(target) => Node::HardLink(target),
        Held::Char(major, minor) => Node::CharDevice {
            major: *major,
            minor: *minor,
        },
        Held::Block(major, minor) => Node::BlockDevice {
            major: *major,
            minor: *minor,
        },
        Held::Fifo => Node::Fifo,
        Held::Socket => Node::Socket,
    };
    sink.entry(path, meta, node)
}

impl Tree {
    pub(crate) fn add(&mut self, path: &[u8], meta: NodeMeta, held: Held) {
        self.0.insert(path.to_vec(), (meta, held));
    }

    /// Brings both sides of a comparison to one form: attributes sorted, data as it reads (holes and block padding make
    /// no difference), hard links under the first name with the metadata of their target.
    pub(crate) fn canonical(&self) -> Tree {
        let mut out = Tree::default();
        let mut first: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let owner = |path: &Vec<u8>| {
            let mut at = path.clone();
            while let Some((_, Held::HardLink(target))) = self.0.get(&at) {
                at.clone_from(target);
            }
            at
        };
        for path in self.0.keys() {
            let source = owner(path);
            let (mut meta, held) = self.0[&source].clone();
            meta.xattrs.sort();
            let held = if let Some(earlier) = first.get(&source) {
                Held::HardLink(earlier.clone())
            } else {
                first.insert(source, path.clone());
                normal(held)
            };
            out.0.insert(path.clone(), (meta, held));
        }
        out
    }

    pub(crate) fn write_into(&self, writer: &mut Writer) {
        for links in [false, true] {
            for (path, (meta, held)) in &self.0 {
                if matches!(held, Held::HardLink(_)) == links {
                    push(writer, path, meta, held).unwrap();
                }
            }
        }
    }
}

/// Drops zero blocks from data, so that holes and stretches of zeros are the same.
fn normal(held: Held) -> Held {
    let Held::File { size, runs } = held else {
        return held;
    };
    let mut blocks: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (offset, data) in runs {
        for (at, byte) in (offset..).zip(data) {
            if byte != 0 {
                blocks.entry(at / 4096).or_insert_with(|| vec![0; 4096])[(at % 4096) as usize] =
                    byte;
            }
        }
    }
    Held::File {
        size,
        runs: blocks
            .into_iter()
            .map(|(at, data)| (at * 4096, data))
            .collect(),
    }
}

pub(crate) fn meta(mode: u16) -> NodeMeta {
    NodeMeta {
        mode,
        uid: 0,
        gid: 0,
        mtime: 1_700_000_000,
        mtime_nsec: 0,
        xattrs: Vec::new(),
    }
}

pub(crate) fn file(data: &[u8]) -> Held {
    let runs = if data.is_empty() {
        Vec::new()
    } else {
        vec![(0, data.to_vec())]
    };
    Held::File {
        size: data.len() as u64,
        runs,
    }
}

pub(crate) fn options(size: Bytes) -> Options {
    let mut options = Options::new(uuid::Uuid::from_u128(
        0x1234_5678_9abc_def0_1122_3344_5566_7788,
    ));
    options.size = size;
    "test".clone_into(&mut options.label);
    options.time = 1_600_000_000;
    options
}

/// Makes an image of a tree.
pub(crate) fn make(image: &Path, size: Bytes, tree: &Tree) {
    let mut writer = Writer::create(image, options(size)).unwrap();
    tree.write_into(&mut writer);
    writer.finish().unwrap();
}

/// Lets e2fsck judge an image. Returns false, visibly, when the program is missing.
pub(crate) fn check(test: &str, image: &Path) -> bool {
    if require(test, Need::Program("e2fsck")).is_none() {
        return false;
    }
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(image)
        .env("PATH", path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    true
}

pub(crate) fn path() -> String {
    format!(
        "/usr/sbin:/sbin:{}",
        std::env::var("PATH").unwrap_or_default()
    )
}

/// Runs a script in a mount namespace of its own with `$image` mounted at `$mnt` by `$options`. `None`, visibly, when this
/// machine cannot mount. Everything is unmounted when the script ends, however it ends.
pub(crate) fn mounted(
    test: &str,
    image: &Path,
    mount_options: &str,
    script: &str,
) -> Option<Vec<u8>> {
    require(test, Need::Root)?;
    let dir = tempfile::tempdir().unwrap();
    let shell = "mount -o \"loop,$options\" \"$image\" \"$mnt\" || exit 99\ncd \"$mnt\"\nset -e\n"
        .to_owned()
        + script;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &shell])
        .env("PATH", path())
        .env("LC_ALL", "C")
        .env("image", image)
        .env("mnt", dir.path())
        .env("options", mount_options)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(99) || text.contains("unshare failed") {
        // A kernel that mounts its own e2fsprogs' images must mount ours: only then is this a skip.
        assert!(!can_mount(), "the kernel refuses the image: {text}");
        skip(test, &format!("cannot mount: {text}"));
        return None;
    }
    assert!(output.status.success(), "{text}");
    Some(output.stdout)
}

fn can_mount() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("probe.raw");
    fs_err::File::create(&image)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    let shell = "mke2fs -q -t ext4 \"$0\" && mount -o loop \"$0\" \"$1\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", shell])
        .arg(&image)
        .arg(dir.path())
        .env("PATH", path());
    command.output().is_ok_and(|output| output.status.success())
}
