//! Import: an archive becomes a base image, shared by everything made from the same bytes, and an overlay on top.
//!
//! Nothing of a distribution is visible before the rename of its complete directory. Until then every step works on names
//! that end in `.partial` or on bases without a record, which the next start of the daemon sweeps.

use std::{
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use hostel_disk::{ext4, overlay};
use hostel_image::OsRelease;
use hostel_model::{Bytes, ErrorCode, Failure};
use hostel_proto::v1;
use hostel_rootfs::{ReadError, ReadOptions, read_archive};

use crate::{
    archives,
    engine::{Engine, parse_name},
    pipe::{ClientFile, Hashed},
    registry::{BasePin, Registry, Reservation},
    state::{self, BaseFile, DistroFile, OsInfo},
    task::TaskSink,
};

/// The size that the name of a base does not mention: the default of the configuration when this form was settled.
const UNMENTIONED_SIZE: Bytes = Bytes::gib(256);

/// The smallest file system that may be asked for.
const SMALLEST: Bytes = Bytes::mib(64);

/// How much may follow the end of an archive beyond what its reader skips, in bytes.
const MAX_TAIL: u64 = 64 << 20;

/// Progress is told every so many bytes.
const STEP: u64 = 4 << 20;

/// Where an archive comes from.
pub(crate) enum Input {
    /// A file, pipe or socket of a client.
    Client(fs_err::File),
    /// Something that is made while it is read.
    Made(Box<dyn Read + Send>),
}

/// What an import needs to know.
pub(crate) struct Job {
    pub(crate) registry: Arc<Registry>,
    pub(crate) reservation: Reservation,
    pub(crate) size: Bytes,
    pub(crate) source: String,
    pub(crate) set_default: bool,
    pub(crate) sink: TaskSink,
}

/// What an import made.
pub(crate) struct Imported {
    record: DistroFile,
    bytes: u64,
    base_shared: bool,
    warnings: Vec<String>,
}

impl Engine {
    /// Imports an archive that the client hands over; the client going away cancels it and leaves nothing.
    ///
    /// A disk of no asked-for size gets `default_size`; only what is used occupies the host.
    pub async fn import(
        self: &Arc<Self>,
        request: v1::ImportRequest,
        default_size: Bytes,
        sink: &TaskSink,
    ) -> Result<(), Failure> {
        let _working = self.work();
        let size = disk_size(request.disk_limit_bytes, default_size)?;
        let reservation = self
            .registry
            .reserve(parse_name(&request.name)?)
            .map_err(|e| e.failure())?;
        let descriptor = self.archive_descriptor(sink).await?;
        let source = source_text(&request.source_name);
        let path = if request.source_name == "-" {
            "standard input".to_owned()
        } else {
            source.clone()
        };
        let input = fs_err::File::from_parts(descriptor.into(), path);
        let job = Job {
            registry: Arc::clone(&self.registry),
            reservation,
            size,
            source,
            set_default: request.set_default,
            sink: sink.clone(),
        };
        self.take_archive(Input::Client(input), job).await
    }

    /// Runs an import to its end and tells its client.
    pub(crate) async fn take_archive(
        self: &Arc<Self>,
        input: Input,
        job: Job,
    ) -> Result<(), Failure> {
        let sink = job.sink.clone();
        let made = tokio::task::spawn_blocking(move || {
            let made = job.run(input);
            hostel_sys::memory::give_back();
            made
        })
        .await
        .unwrap_or_else(|e| Err(Failure::from_error(ErrorCode::Internal, &e)))?;
        tracing::info!(distro = %made.record.name, bytes = made.bytes, shared = made.base_shared, "imported");
        for warning in made.warnings {
            sink.warn(warning).await;
        }
        let is_default = self.registry.default_id() == Some(made.record.id);
        sink.done(v1::TaskDone {
            distro: Some(self.describe(&made.record, is_default)),
            bytes: made.bytes,
            base_shared: made.base_shared,
            ..v1::TaskDone::default()
        })
        .await;
        Ok(())
    }
}

/// Checks the size that was asked for; 0 asks for the default.
pub(crate) fn disk_size(wanted: u64, default: Bytes) -> Result<Bytes, Failure> {
    let size = if wanted == 0 { default } else { Bytes(wanted) };
    match size {
        size if size < SMALLEST => Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("a disk of {size} is too small; at least {SMALLEST}"),
        )),
        size if size >= Bytes::gib(16 << 10) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("a disk of {size} is too large; below 16 TiB"),
        )),
        // Whole MiB, so that sizes that differ by nothing anyone meant share one base.
        size => Ok(Bytes::mib(size.whole_mib())),
    }
}

/// Makes what the client calls its archive fit to keep and show.
fn source_text(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(1024)
        .collect()
}

/// A base image, complete, that will not be removed while this lives.
struct Base {
    name: String,
    file: BaseFile,
    shared: bool,
    warnings: Vec<String>,
    pin: BasePin,
}

impl Job {
    fn run(self, input: Input) -> Result<Imported, Failure> {
        let base = self.base(input)?;
        self.sink.progress("registering", 0, 0, "");
        let id = self.reservation.id;
        let layout = self.registry.layout().clone();
        let directory = layout.distro_partial(id);
        let undo = Undo(directory.clone());
        fs_err::create_dir(&directory).map_err(|e| files_failure(&e))?;
        let disk = directory.join("disk.qcow2");
        overlay::create_overlay(&disk, &layout.base(&base.name), Bytes(base.file.size))
            .map_err(|e| disk_failure(&e, "the disk cannot be made"))?;
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let record = DistroFile {
            id,
            name: self.reservation.name.clone(),
            created_unix_ns: created.as_nanos() as u64,
            version: 2,
            base: base.name.clone(),
            os: base.file.os.clone(),
            default_user: String::new(),
            source: self.source,
            disk_limit: base.file.size,
            network: crate::state::Setting::default(),
            address: crate::state::Setting::default(),
        };
        fs_err::File::open(&disk)
            .and_then(|f| f.sync_all())
            .map_err(|e| files_failure(&e))?;
        state::store(&directory.join("distro.json"), &record)
            .map_err(|e| crate::registry::state_failure(&e))?;
        if self.sink.is_closed() {
            return Err(cancelled());
        }
        self.registry
            .register(self.reservation, record.clone(), self.set_default)
            .map_err(|e| e.failure())?;
        undo.done();
        drop(base.pin);
        Ok(Imported {
            record,
            bytes: base.file.archive_bytes,
            base_shared: base.shared,
            warnings: base.warnings,
        })
    }

    /// Returns the base of an archive: a known one without reading, else by reading.
    fn base(&self, input: Input) -> Result<Base, Failure> {
        let input = match input {
            Input::Made(mut reader) => {
                let (_, base) = self.read(
                    Cancelled {
                        input: &mut reader,
                        sink: &self.sink,
                    },
                    0,
                )?;
                return Ok(base);
            }
            Input::Client(file) => file,
        };
        let input = &input;
        let layout = self.registry.layout();
        let stamp = archives::stamp(input);
        if let Some(digest) = stamp.and_then(|s| archives::known(layout, &s)) {
            let name = self.base_name(&digest);
            let pin = self.registry.pin_base(&name);
            if let Some(file) = self.registry.base(&name) {
                return Ok(Base {
                    name,
                    file,
                    shared: true,
                    warnings: Vec::new(),
                    pin,
                });
            }
        }
        self.check_space(input)?;
        let begun = SystemTime::now();
        let total = input
            .metadata()
            .ok()
            .filter(std::fs::Metadata::is_file)
            .map_or(0, |m| m.len());
        let (digest, base) = self.read(ClientFile::new(input, &self.sink), total)?;
        if let Some(stamp) = stamp
            && let Err(error) = self.remember(input, stamp, begun, &digest)
        {
            tracing::debug!(%error, "an archive was not remembered");
        }
        Ok(base)
    }

    fn remember(
        &self,
        input: &fs_err::File,
        before: archives::Stamp,
        begun: SystemTime,
        digest: &str,
    ) -> io::Result<()> {
        use std::io::Seek as _;
        let mut file = input;
        file.rewind()?;
        // Changed while it was read: what was read is nobody's content any more.
        if archives::stamp(input) != Some(before) {
            return Ok(());
        }
        archives::remember(self.registry.layout(), before, begun, digest)
    }

    /// A base is named by the archive; by the size of its file system too when that is not the usual one.
    fn base_name(&self, digest: &str) -> String {
        if self.size == UNMENTIONED_SIZE {
            digest.to_owned()
        } else {
            format!("{digest}-{}", self.size.0)
        }
    }

    /// Refuses early when an archive of known size cannot fit.
    fn check_space(&self, input: &fs_err::File) -> Result<(), Failure> {
        let Ok(meta) = input.metadata() else {
            return Ok(());
        };
        let Ok(space) = rustix::fs::statvfs(self.registry.layout().home()) else {
            return Ok(());
        };
        let free = Bytes(space.f_bavail.saturating_mul(space.f_frsize));
        if meta.is_file() && free < Bytes(meta.len()) {
            return Err(Failure::new(
                ErrorCode::DiskFull,
                format!(
                    "the archive has {}, and only {free} are free in `{}`",
                    Bytes(meta.len()),
                    self.registry.layout().home().display()
                ),
            )
            .hint("free some space, or set HOSTEL_HOME to a larger disk"));
        }
        Ok(())
    }

    /// Reads an archive into a new base, or finds out at its end that the base exists.
    fn read(&self, input: impl io::Read, total: u64) -> Result<(String, Base), Failure> {
        let layout = self.registry.layout();
        let partial =
            layout
                .bases()
                .join(format!("{}{}", self.reservation.id, crate::layout::PARTIAL));
        let undo = Undo(partial.clone());
        let mut options = ext4::Options::new(uuid::Uuid::new_v4());
        options.size = self.size;
        options.time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs() as _;
        let mut writer = ext4::Writer::create(&partial, options)
            .map_err(|e| disk_failure(&e, "the disk cannot be made"))?;

        let mut told = 0;
        let mut progress = |p: hostel_rootfs::Progress| {
            if p.taken >= told + STEP {
                told = p.taken;
                self.sink
                    .progress("reading archive", p.taken, total, "bytes");
            }
        };
        let mut hashed =
            Hashed::new(input).map_err(|e| Failure::from_error(ErrorCode::Internal, &e))?;
        let summary = read_archive(
            &mut hashed,
            &mut writer,
            &ReadOptions::default(),
            &mut progress,
        )
        .map_err(|e| self.archive_failure(&e))?;
        if !summary.facts.looks_like_linux {
            return Err(Failure::new(
                ErrorCode::NotALinuxDistro,
                format!(
                    "{} is not a Linux root file system: it has neither /etc nor /bin/sh",
                    self.shown()
                ),
            )
            .hint("the archive must hold the root directory itself, not a directory with it"));
        }
        let tail = io::copy(&mut hashed.by_ref().take(MAX_TAIL + 1), &mut io::sink())
            .map_err(|e| self.archive_failure(&ReadError::Input(e)))?;
        if tail > MAX_TAIL {
            return Err(Failure::new(
                ErrorCode::BadArchive,
                format!(
                    "{} goes on for more than {} after its end",
                    self.shown(),
                    Bytes(MAX_TAIL)
                ),
            ));
        }
        self.sink.progress("writing disk", 0, 0, "");
        let (digest, archive_bytes) = hashed.finish();
        let name = self.base_name(&digest);
        let pin = self.registry.pin_base(&name);
        let mut warnings = summary.warnings;
        if summary.more_warnings > 0 {
            warnings.push(format!("{} more warnings", summary.more_warnings));
        }
        if let Some(file) = self.registry.base(&name) {
            return Ok((
                digest,
                Base {
                    name,
                    file,
                    shared: true,
                    warnings,
                    pin,
                },
            ));
        }
        writer
            .finish()
            .map_err(|e| disk_failure(&e, "the disk cannot be written"))?;
        let os = summary
            .facts
            .os_release
            .as_deref()
            .map_or_else(OsInfo::default, os_info);
        let file = BaseFile {
            os,
            archive_bytes,
            size: self.size.0,
        };
        // Read-only from here on: every distribution writes to its own overlay.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        fs_err::set_permissions(&partial, mode)
            .and_then(|()| fs_err::File::open(&partial)?.sync_all())
            .and_then(|()| fs_err::rename(&partial, layout.base(&name)))
            .map_err(|e| files_failure(&e))?;
        undo.done();
        state::store(&layout.base_file(&name), &file)
            .map_err(|e| crate::registry::state_failure(&e))?;
        Ok((
            digest,
            Base {
                name,
                file,
                shared: false,
                warnings,
                pin,
            },
        ))
    }

    fn shown(&self) -> String {
        if self.source == "-" {
            "the archive on standard input".to_owned()
        } else {
            format!("`{}`", self.source)
        }
    }

    fn archive_failure(&self, error: &ReadError) -> Failure {
        if self.sink.is_closed() {
            return cancelled();
        }
        let failure = match error {
            ReadError::Sink { .. } => return disk_failure(error, "the disk cannot be written"),
            ReadError::Input(source) => crate::install::input_failure(source, error),
            ReadError::Empty
            | ReadError::NotAnArchive { .. }
            | ReadError::Truncated { .. }
            | ReadError::Compression { .. }
            | ReadError::Damaged { .. }
            | ReadError::BadMember { .. }
            | ReadError::Refused { .. }
            | ReadError::TooMany(_) => Failure::from_error(ErrorCode::BadArchive, error)
                .hint("fetch or make the archive again"),
        };
        Failure {
            message: format!("cannot import {}: {}", self.shown(), failure.message),
            ..failure
        }
    }
}

/// Takes from os-release what is kept (IMG-3).
fn os_info(bytes: &[u8]) -> OsInfo {
    let os = OsRelease::parse(bytes);
    OsInfo {
        id: os.id.unwrap_or_default(),
        version: os.version_id.unwrap_or_default(),
        pretty_name: os.pretty_name.unwrap_or_default(),
    }
}

fn cancelled() -> Failure {
    Failure::new(ErrorCode::Daemon, "given up: the client is gone")
}

fn files_failure(error: &io::Error) -> Failure {
    disk_failure(error, "the state directory cannot be written")
}

/// Says a failure of the host's disk; a full one has a code and advice of its own.
pub(crate) fn disk_failure(error: &(dyn std::error::Error + 'static), what: &str) -> Failure {
    let full = is_full(error);
    let failure = Failure::from_error(
        if full {
            ErrorCode::DiskFull
        } else {
            ErrorCode::State
        },
        error,
    );
    let failure = Failure {
        message: format!("{what}: {}", failure.message),
        ..failure
    };
    failure.hint(if full {
        "free some space, or set HOSTEL_HOME to a larger disk"
    } else {
        "hostel doctor"
    })
}

/// Tells whether a full disk is anywhere among an error's causes.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if matches!(
                io.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            ) {
                return true;
            }
            if let Some(inner) = io.get_ref()
                && is_full(inner)
            {
                return true;
            }
        }
        next = error.source();
    }
    false
}

/// Ends reading when the client is gone.
struct Cancelled<'a> {
    input: &'a mut (dyn Read + Send),
    sink: &'a TaskSink,
}

impl Read for Cancelled<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.sink.is_closed() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the client is gone",
            ));
        }
        self.input.read(buf)
    }
}

/// Removes a file or directory unless the work is done.
struct Undo(PathBuf);

impl Undo {
    fn done(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        // What cannot be removed now is swept at the next start.
        let _ = if self.0.is_dir() {
            fs_err::remove_dir_all(&self.0)
        } else {
            fs_err::remove_file(&self.0)
        };
    }
}
