//! Kernels: installed into the store, listed, and one of them chosen for the next boot.

use std::{path::PathBuf, sync::Arc};

use hostel_kernel::{
    InstallError, InstallOptions, Kernel, Progress, Source, SourceError, Step, Store, StoreError,
};
use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;

use crate::{engine::Engine, registry::Registry, task::TaskSink};

impl Engine {
    /// Installs a kernel; the first one is chosen for the next boot, a later one when asked for.
    pub async fn kernel_install(
        self: &Arc<Self>,
        request: v1::KernelInstallRequest,
        sink: &TaskSink,
    ) -> Result<(), Failure> {
        let _working = self.work();
        let source = source(&request)?;
        let progress = sink.clone();
        let kernel = self
            .blocking(move |registry| {
                let store = store(registry)?;
                let mut tell = |p: Progress| tell(&progress, p);
                let installed = store
                    .install(&source, &InstallOptions::default(), &mut tell)
                    .map_err(|e| install_failure(&e))?;
                hostel_sys::memory::give_back();
                let release = installed.kernel.release().to_owned();
                let chosen = registry.settings().kernel.filter(|r| store.get(r).is_ok());
                if request.r#use || chosen.is_none() {
                    registry
                        .change_settings(|s| s.kernel = Some(release))
                        .map_err(|e| e.failure())?;
                }
                Ok(installed.kernel)
            })
            .await?;
        tracing::info!(release = kernel.release(), "kernel installed");
        let chosen = self.registry.settings().kernel;
        sink.done(v1::TaskDone {
            kernel: Some(self.describe_kernel(&kernel, chosen.as_deref())),
            ..v1::TaskDone::default()
        })
        .await;
        Ok(())
    }

    /// Lists the installed kernels, the one installed last first.
    pub async fn kernel_list(self: &Arc<Self>) -> Result<Vec<v1::Kernel>, Failure> {
        let kernels = self
            .blocking(|r| store(r)?.list().map_err(|e| store_failure(&e)))
            .await?;
        let chosen = chosen_release(&self.registry, &kernels);
        Ok(kernels
            .iter()
            .map(|k| self.describe_kernel(k, chosen.as_deref()))
            .collect())
    }

    /// Chooses the kernel for the next boot of the VM.
    pub async fn kernel_use(self: &Arc<Self>, release: String) -> Result<(), Failure> {
        self.blocking(move |registry| {
            store(registry)?
                .get(&release)
                .map_err(|e| store_failure(&e))?;
            registry
                .change_settings(|s| s.kernel = Some(release))
                .map_err(|e| e.failure())
        })
        .await
    }

    /// Returns the release of the kernel that boots next; empty when none is installed.
    pub async fn kernel_next(self: &Arc<Self>) -> String {
        self.blocking(|r| chosen(r).map(|k| k.release().to_owned()))
            .await
            .unwrap_or_default()
    }

    fn describe_kernel(&self, kernel: &Kernel, chosen: Option<&str>) -> v1::Kernel {
        let record = kernel.record();
        let release = kernel.release().to_owned();
        v1::Kernel {
            source: record.source.clone(),
            in_use: chosen == Some(release.as_str()),
            running: self
                .vm
                .running()
                .is_some_and(|r| r.kernel_release == release),
            bytes: record.vmlinux_bytes + record.modules_bytes,
            installed_unix: record.installed_unix,
            sha256: record.vmlinux_sha256.clone(),
            release,
        }
    }
}

fn store(registry: &Registry) -> Result<Store, Failure> {
    Store::open(registry.layout().kernels()).map_err(|e| store_failure(&e))
}

/// Returns the kernel that boots next: the chosen one, else the one installed last.
pub(crate) fn chosen(registry: &Registry) -> Result<Kernel, Failure> {
    let store = store(registry)?;
    if let Some(release) = registry.settings().kernel {
        match store.get(&release) {
            Ok(kernel) => return Ok(kernel),
            Err(StoreError::NotInstalled(_)) => {}
            Err(error) => return Err(store_failure(&error)),
        }
    }
    let kernels = store.list().map_err(|e| store_failure(&e))?;
    kernels.into_iter().next().ok_or_else(|| {
        Failure::new(ErrorCode::KernelMissing, "no kernel is installed")
            .hint("hostel kernel install")
    })
}

fn chosen_release(registry: &Registry, kernels: &[Kernel]) -> Option<String> {
    registry
        .settings()
        .kernel
        .filter(|r| kernels.iter().any(|k| k.release() == r))
        .or_else(|| kernels.first().map(|k| k.release().to_owned()))
}

/// Understands where a kernel is to come from.
fn source(request: &v1::KernelInstallRequest) -> Result<Source, Failure> {
    let path = |text: &str| {
        let path = PathBuf::from(text);
        if path.is_absolute() {
            Ok(path)
        } else {
            Err(Failure::new(
                ErrorCode::InvalidArgument,
                format!("`{}` is not an absolute path", text.escape_debug()),
            ))
        }
    };
    let modules = Some(request.modules.as_str()).filter(|m| !m.is_empty());
    match (request.source.as_str(), modules) {
        ("", None) => Ok(Source::DebianCloud),
        ("host", None) => Ok(Source::Host),
        ("" | "host", Some(_)) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            "a modules directory belongs to a kernel image given as a file",
        )),
        (text, None) if text.to_ascii_lowercase().ends_with(".deb") => {
            Ok(Source::Debs(vec![path(text)?]))
        }
        (text, modules) => Ok(Source::Files {
            vmlinuz: path(text)?,
            modules_dir: modules.map(path).transpose()?,
        }),
    }
}

fn tell(sink: &TaskSink, p: Progress) {
    let (step, unit) = match p.step {
        Step::Find => ("finding packages", ""),
        Step::Fetch => ("fetching", "bytes"),
        Step::Unpack => ("unpacking", "bytes"),
        Step::Check => ("checking the kernel", ""),
        Step::Finish => ("writing", ""),
    };
    sink.progress(step, p.done, p.total.unwrap_or(0), unit);
}

pub(crate) fn store_failure(error: &StoreError) -> Failure {
    match error {
        StoreError::NotInstalled(_) => Failure::from_error(ErrorCode::KernelMissing, error)
            .hint("hostel kernel list")
            .hint("hostel kernel install"),
        StoreError::Damaged { .. } => {
            Failure::from_error(ErrorCode::KernelMissing, error).hint("hostel kernel install")
        }
        StoreError::Busy(_) => {
            Failure::from_error(ErrorCode::Busy, error).hint("wait until it is done")
        }
        StoreError::Io(_) => {
            crate::import::disk_failure(error, "the store of kernels cannot be used")
        }
    }
}

fn install_failure(error: &InstallError) -> Failure {
    match error {
        InstallError::Store(error) => store_failure(error),
        InstallError::Io(_) => crate::import::disk_failure(error, "the kernel cannot be written"),
        InstallError::Modules(_) => Failure::from_error(ErrorCode::ModuleMissing, error)
            .hint("hostel kernel install, for Debian's cloud kernel, which has what is needed"),
        InstallError::Source(source) => {
            let code = match source {
                SourceError::BadDigest { .. } => ErrorCode::BadDigest,
                SourceError::Fetch { .. }
                | SourceError::Apt { .. }
                | SourceError::AptKnowsNone(_) => ErrorCode::Fetch,
                SourceError::Run { .. } => ErrorCode::ToolMissing,
                _ => ErrorCode::File,
            };
            Failure::from_error(code, error)
                .hint("hostel kernel install FILE.deb, or a vmlinuz with its modules")
        }
    }
}
