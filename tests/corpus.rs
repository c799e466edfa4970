//! The fuzz targets on a stable compiler: every body over its corpus, and over thousands of mutations of every seed.
//!
//! Deterministic. `HOSTEL_FUZZ_SECONDS` makes each target run that long instead, with mutations that are new every time.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests stand outside of test functions"
)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hostel_disk::ext4::{Options, Writer};
use hostel_model::{
    Bytes,
    tree::{DataRun, Node, NodeMeta, TreeSink as _},
};
use hostel_tests::fuzz::{
    self, TARGETS,
    mutate::{Random, mutate},
};

/// Mutations of each seed.
const ROUNDS: usize = 3000;
/// How long one target may take.
const BOUND: Duration = Duration::from_secs(10);
/// An input that takes longer hangs; wide, because test machines are slow and busy.
const HANG: Duration = Duration::from_secs(20);

#[test]
fn archives() {
    run("archive", Vec::new());
}

#[test]
fn disks() {
    run("ext4", vec![("fresh".into(), fuzz::pack(&fresh_disk()))]);
}

#[test]
fn failures() {
    run("failure", Vec::new());
}

#[test]
fn instance_packets() {
    run("instance_wire", Vec::new());
}

#[test]
fn kernels() {
    run("kernel_image", Vec::new());
}

#[test]
fn vsock_packets() {
    run("vsock_packet", Vec::new());
}

#[test]
fn names() {
    run("dns", Vec::new());
}

#[test]
fn configuration_files() {
    run("wslconf", Vec::new());
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs_err::read_to_string(root.join("../fuzz/Cargo.toml")).unwrap();
    let mut bytes = 0;
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        let program = format!("../fuzz/fuzz_targets/{name}.rs");
        let program = fs_err::read_to_string(root.join(program)).unwrap();
        assert!(program.contains(&format!("fuzz::{name}(")), "{name}");
        let seeds = corpus(name);
        assert!(!seeds.is_empty(), "{name}");
        bytes += seeds.iter().map(|(_, seed)| seed.len()).sum::<usize>();
    }
    assert!(bytes < 200 << 10, "the corpus takes {bytes} bytes");
}

/// Runs a body over its corpus, some seeds made here, and mutations of all of them.
fn run(name: &str, made: Vec<(PathBuf, Vec<u8>)>) {
    let (_, body) = TARGETS.into_iter().find(|(n, _)| *n == name).unwrap();
    let mut seeds = corpus(name);
    seeds.extend(made);
    for (path, seed) in &seeds {
        judge(name, &path.display().to_string(), body, seed);
    }
    let by_hand = std::env::var("HOSTEL_FUZZ_SECONDS").ok();
    let by_hand = by_hand.map(|s| Duration::from_secs(s.parse().expect("seconds")));
    let start = Instant::now();
    let mut random = Random::new(match by_hand {
        Some(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64,
        None => 0x0005_eed0_f1c0_de00,
    });
    let end = start + by_hand.unwrap_or(BOUND);
    let mut done = 0;
    // One mutation of each seed in turn: a slow machine does less of all, not all of some.
    'rounds: for round in 0.. {
        if round == ROUNDS && by_hand.is_none() {
            break;
        }
        for (i, (path, seed)) in seeds.iter().enumerate() {
            if Instant::now() >= end {
                break 'rounds;
            }
            let (_, other) = &seeds[(i + round) % seeds.len()];
            let input = mutate(seed, other, &mut random);
            judge(name, &path.display().to_string(), body, &input);
            done += 1;
        }
    }
    println!(
        "{name}: {} seeds, {done} mutations, {:?}",
        seeds.len(),
        start.elapsed()
    );
}

/// Runs one input; one that fails is kept as a file.
fn judge(name: &str, seed: &str, body: fuzz::Body, input: &[u8]) {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| body(input)));
    let slow = start.elapsed() > HANG;
    if result.is_ok() && !slow {
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix(&format!("fuzz-{name}-"))
        .disable_cleanup(true)
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .unwrap();
    let file = dir.path().join("input");
    fs_err::write(&file, input).unwrap();
    println!(
        "{name}: a mutation of {seed} failed; it is kept in {}",
        file.display()
    );
    match result {
        Err(panic) => resume_unwind(panic),
        Ok(()) => panic!("{name}: took {:?}", start.elapsed()),
    }
}

/// Reads the seeds of a target, in order of their names.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut seeds: Vec<_> = fs_err::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs_err::read(path).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

/// A disk of our own writer's, so that the corpus follows it.
fn fresh_disk() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut options = Options::new(uuid::Uuid::from_u128(7));
    options.size = Bytes::mib(8);
    let mut writer = Writer::create(&path, options).unwrap();
    let meta = NodeMeta {
        mode: 0o644,
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
        ..NodeMeta::default()
    };
    let runs = [DataRun {
        offset: 4096,
        len: 5,
    }];
    let file = |size, data| Node::File {
        size,
        runs: &runs,
        data,
    };
    writer.entry(b"etc", &meta, Node::Directory).unwrap();
    writer
        .entry(b"etc/os-release", &meta, file(9000, &mut &b"ID=x\n"[..]))
        .unwrap();
    writer
        .entry(b"b", &meta, Node::HardLink(b"etc/os-release"))
        .unwrap();
    writer
        .entry(b"l", &meta, Node::Symlink(b"etc/../b"))
        .unwrap();
    writer
        .entry(b"n", &meta, Node::CharDevice { major: 1, minor: 3 })
        .unwrap();
    writer.finish().unwrap();
    fs_err::read(&path).unwrap()
}
