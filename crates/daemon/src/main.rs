//! `hosteld`: serves the API of one Hostel of one user over unix sockets, from the first request until nothing runs.

mod listen;
mod log;
mod run;
mod service;
mod settings;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args
        .next()
        .as_deref()
        .map(std::ffi::OsStr::to_string_lossy)
        .as_deref()
    {
        None => {}
        Some("--version" | "-V") => {
            log::say_out(&format!("hosteld {}", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            log::say_err(&format!(
                "hosteld: unknown argument `{other}`; it is started by `hostel` and configured by hostel.conf"
            ));
            return ExitCode::from(2);
        }
    }
    let mut ready = settings::Ready::from_env();
    let settings = match settings::Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => return fail(&mut ready, &error),
    };
    log::start(&settings);
    hostel_sys::memory::share_heaps();
    // Two workers: everything here waits for others. Children are started from threads of their own, which live on.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run::run(settings, &mut ready));
            // Blocked readers of pipes that nobody closes must not keep the process.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&mut ready, &error),
    }
}

fn fail(ready: &mut settings::Ready, error: &anyhow::Error) -> ExitCode {
    let line = format!("{error:#}");
    tracing::error!("{line}");
    ready.say(&line);
    ExitCode::FAILURE
}
