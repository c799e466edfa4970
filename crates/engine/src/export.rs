//! Export: the tree on a stopped distribution's disk becomes an archive, read on the host without the VM.

use std::{io, path::Path, sync::Arc};

use hostel_disk::{ext4, overlay};
use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;
use hostel_rootfs::{ArchiveWriter, Format};

use crate::{
    engine::Engine, import::disk_failure, lifecycle::DistroEvent, pipe::ClientFile,
    state::DistroFile, task::TaskSink,
};

/// Progress is told every so many bytes.
const STEP: u64 = 4 << 20;

impl Engine {
    /// Writes a distribution into the descriptor that the client hands over; stops it first (EXP-1, EXP-2).
    pub async fn export(
        self: &Arc<Self>,
        request: v1::ExportRequest,
        sink: &TaskSink,
    ) -> Result<(), Failure> {
        let _working = self.work();
        let format = if request.format.is_empty() {
            "tar"
        } else {
            &request.format
        };
        let format = Format::parse(format)
            .map_err(|e| Failure::from_error(ErrorCode::InvalidArgument, &e))?;
        let record = self.resolve(&request.name)?;
        let descriptor = self.archive_descriptor(sink).await?;
        let output = fs_err::File::from_parts(descriptor.into(), "the archive");
        sink.progress("stopping", 0, 0, "");
        // Tasks of their own: a client that leaves must not leave a distribution half stopped, nor have it given back
        // before its disk is closed.
        let (engine, taken) = (Arc::clone(self), record.clone());
        let holding = self.tasks.spawn(async move {
            engine.hold(&taken, DistroEvent::Export).await?;
            Ok(Held {
                engine,
                record: taken,
            })
        });
        let held = holding
            .await
            .unwrap_or_else(|e| Err(Failure::from_error(ErrorCode::Internal, &e)))?;
        let layout = self.registry.layout().clone();
        let (writing, name) = (sink.clone(), record.name.clone());
        let work = tokio::task::spawn_blocking(move || {
            let _held = held;
            let result = write(
                &layout.disk(record.id),
                &layout.base(&record.base),
                &output,
                format,
                &writing,
            );
            hostel_sys::memory::give_back();
            result
        });
        let bytes = work
            .await
            .unwrap_or_else(|e| Err(Failure::from_error(ErrorCode::Internal, &e)))?;
        tracing::info!(distro = %name, bytes, "exported");
        sink.done(v1::TaskDone {
            bytes,
            ..v1::TaskDone::default()
        })
        .await;
        Ok(())
    }
}

/// A distribution that is being exported; given back when this is dropped.
struct Held {
    engine: Arc<Engine>,
    record: DistroFile,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.engine.release(&self.record, DistroEvent::ExportEnded);
    }
}

/// Counts what goes out and tells how far it is.
struct Counted<'a> {
    out: ClientFile<'a>,
    sink: &'a TaskSink,
    bytes: u64,
    told: u64,
}

impl io::Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.bytes += n as u64;
        if self.bytes >= self.told + STEP {
            self.told = self.bytes;
            self.sink
                .progress("writing archive", self.bytes, 0, "bytes");
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write(
    disk: &Path,
    base: &Path,
    output: &fs_err::File,
    format: Format,
    sink: &TaskSink,
) -> Result<u64, Failure> {
    let damaged = |error: &dyn std::error::Error| {
        let failure = Failure::from_error(ErrorCode::DiskCorrupted, error);
        Failure {
            message: format!(
                "disk `{}` cannot be read: {}",
                disk.display(),
                failure.message
            ),
            ..failure
        }
        .hint("start the distribution once, so that its journal is replayed, and try again")
    };
    let chain = overlay::open_chain(disk, base).map_err(|e| damaged(&e))?;
    let reader = ext4::Reader::open(chain).map_err(|e| damaged(&e))?;
    let counted = Counted {
        out: ClientFile::new(output, sink),
        sink,
        bytes: 0,
        told: 0,
    };
    let buffered = io::BufWriter::with_capacity(256 << 10, counted);
    let mut archive = ArchiveWriter::new(buffered, format).map_err(|e| output_failure(&e))?;
    if let Err(error) = reader.walk(&mut archive) {
        return Err(if error_is_of_output(&error) {
            output_failure(&error)
        } else {
            damaged(&error)
        });
    }
    let (buffered, _) = archive.finish().map_err(|e| output_failure(&e))?;
    let counted = buffered
        .into_inner()
        .map_err(|e| output_failure(e.error()))?;
    if output.metadata().is_ok_and(|m| m.is_file()) {
        output.sync_all().map_err(|e| output_failure(&e))?;
    }
    Ok(counted.bytes)
}

/// Tells whether walking a disk failed because of where the archive goes rather than because of the disk.
fn error_is_of_output(error: &ext4::ReadError) -> bool {
    matches!(error, ext4::ReadError::Sink { .. })
}

fn output_failure(error: &(dyn std::error::Error + 'static)) -> Failure {
    let failure = disk_failure(error, "the archive cannot be written");
    match failure.code {
        ErrorCode::DiskFull => Failure {
            hints: vec!["choose another place for the archive".to_owned()],
            ..failure
        },
        _ => Failure {
            code: ErrorCode::File,
            hints: Vec::new(),
            ..failure
        },
    }
}
