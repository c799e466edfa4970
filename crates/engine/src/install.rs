//! Install: a distribution made from a source that is fetched here.

use std::{error::Error as _, io, sync::Arc};

use hostel_image::{BootstrapError, BootstrapSpec, Source, bootstrap};
use hostel_model::{Bytes, ErrorCode, Failure};
use hostel_proto::v1;
use hostel_rootfs::ReadError;

use crate::{
    engine::{Engine, parse_name},
    import::{Input, Job, disk_size},
    task::TaskSink,
};

/// The longest line of the bootstrap's talk that is passed on, in characters.
const MAX_LINE: usize = 200;

impl Engine {
    /// Makes a distribution from a source that is fetched here; the client going away cancels it and leaves nothing.
    pub async fn install(
        self: &Arc<Self>,
        request: v1::InstallRequest,
        mirror: Option<String>,
        default_size: Bytes,
        sink: &TaskSink,
    ) -> Result<(), Failure> {
        let _working = self.work();
        let source = Source::parse(&request.source).map_err(|e| {
            Failure::from_error(ErrorCode::InvalidArgument, &e)
                .hint("hostel import NAME FILE, for an archive")
        })?;
        let Source::Debian(suite) = source;
        let name = if request.name.is_empty() {
            source.default_name()
        } else {
            parse_name(&request.name)?
        };
        let job = Job {
            registry: Arc::clone(&self.registry),
            reservation: self.registry.reserve(name).map_err(|e| e.failure())?,
            size: disk_size(0, default_size)?,
            source: source.to_string(),
            set_default: request.set_default,
            sink: sink.clone(),
        };
        let spec = BootstrapSpec {
            packages: request.packages,
            mirror,
            ..BootstrapSpec::new(suite)
        };
        let told = sink.clone();
        let started = tokio::task::spawn_blocking(move || {
            bootstrap(&spec, move |line| {
                let line: String = line
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(MAX_LINE)
                    .collect();
                told.progress(&line, 0, 0, "");
            })
        });
        let reader = started
            .await
            .map_err(|e| Failure::from_error(ErrorCode::Internal, &e))?
            .map_err(|e| bootstrap_failure(&e))?;
        self.take_archive(Input::Made(Box::new(reader)), job).await
    }
}

fn bootstrap_failure(error: &BootstrapError) -> Failure {
    let failure = |code| Failure::from_error(code, error);
    match error {
        BootstrapError::NoProgram(_) => {
            failure(ErrorCode::ToolMissing).hint("sudo apt-get install mmdebstrap")
        }
        BootstrapError::NoKeyring(_) => {
            failure(ErrorCode::ToolMissing).hint("sudo apt-get install debian-archive-keyring")
        }
        _ => failure(ErrorCode::Fetch).hint("check the network and apt's sources, and try again"),
    }
}

/// Says why an archive could not be read: the client's file, or the bootstrap that makes it.
pub(crate) fn input_failure(source: &io::Error, error: &ReadError) -> Failure {
    let inner = source
        .get_ref()
        .and_then(|e| e.downcast_ref::<BootstrapError>());
    match inner.or_else(|| source.source().and_then(|e| e.downcast_ref())) {
        Some(bootstrap) => bootstrap_failure(bootstrap),
        None => Failure::from_error(ErrorCode::File, error),
    }
}
