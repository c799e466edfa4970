//! `hostel kernel …`.

use std::path::{Path, PathBuf};

use hostel_model::Bytes;
use hostel_proto::v1;

use super::archive::finish;
use crate::{
    args::{KernelInstallArgs, KernelUseArgs},
    connect::{self, Daemon},
    progress,
    surroundings::Context,
    text::{Table, clock},
    trouble::Trouble,
    view,
};

/// `hostel kernel install`.
pub(super) async fn install(context: &Context, args: KernelInstallArgs) -> Result<(), Trouble> {
    let source = match args.source {
        Some(source) if source != Path::new("host") => wire_path(source)?,
        Some(_) => "host".to_owned(),
        None => String::new(),
    };
    let modules = args.modules.map(wire_path).transpose()?.unwrap_or_default();
    let mut daemon = connect::connect(&context.paths).await?;
    let request = v1::KernelInstallRequest {
        source,
        modules,
        r#use: !args.no_use,
    };
    let events = daemon.api.kernel_install(request).await?.into_inner();
    let done = progress::follow(&context.printer, events, |_| Ok(())).await?;
    let release = done
        .kernel
        .as_ref()
        .map(|k| k.release.clone())
        .unwrap_or_default();
    finish(context, &done, &format!("installed kernel {release}"))
}

/// Makes a path absolute, because the daemon stands elsewhere; it must exist and be text.
fn wire_path(path: PathBuf) -> Result<String, Trouble> {
    let shown = path.display().to_string();
    let absolute = path
        .canonicalize()
        .map_err(|e| Trouble::file(format!("cannot find `{shown}`"), &e))?;
    absolute.into_os_string().into_string().map_err(|_| {
        Trouble::Usage(format!(
            "`{shown}` is not UTF-8, which a path of a kernel must be"
        ))
    })
}

/// `hostel kernel list`.
pub(super) async fn list(context: &Context) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    let kernels = Daemon::answer(daemon.api.kernel_list(v1::KernelListRequest {}))
        .await?
        .kernels;
    if context.printer.json {
        return context
            .printer
            .json(&kernels.iter().map(view::kernel).collect::<Vec<_>>());
    }
    if kernels.is_empty() {
        context
            .printer
            .say("no kernel is installed; run `hostel kernel install`");
        return Ok(());
    }
    context.printer.data(&table(&kernels))
}

fn table(kernels: &[v1::Kernel]) -> String {
    let mut table = Table::new(&["  RELEASE", "SIZE", "INSTALLED", "NOTE", "SOURCE"]);
    for k in kernels {
        let mark = if k.in_use { '*' } else { ' ' };
        let note = if k.running { "running" } else { "" };
        let size = Bytes(k.bytes).to_string();
        table.row([
            &format!("{mark} {}", k.release),
            &size,
            &clock(k.installed_unix),
            note,
            &k.source,
        ]);
    }
    table.render()
}

/// `hostel kernel use`.
pub(super) async fn choose(context: &Context, args: KernelUseArgs) -> Result<(), Trouble> {
    let mut daemon = connect::connect(&context.paths).await?;
    Daemon::answer(daemon.api.kernel_use(v1::KernelUseRequest {
        release: args.release.clone(),
    }))
    .await?;
    context.printer.say(&format!(
        "the machine boots kernel {} from its next start on",
        args.release
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_that_is_booted_next_is_marked() {
        let kernel = |release: &str, in_use, running| v1::Kernel {
            release: release.into(),
            in_use,
            running,
            ..Default::default()
        };
        assert_eq!(
            table(&[kernel("6.1", false, true), kernel("6.12", true, false)]),
            "  RELEASE  SIZE  INSTALLED  NOTE     SOURCE\n  6.1      0 B              running\n* 6.12     0 B\n"
        );
    }
}
