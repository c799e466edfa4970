//! Distributions on the kernel of this machine, without a VM. Needs root and a static busybox; says what it skips.
//!
//! The program is its own helper: it calls `run_role` first.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test program with a `main` of its own, which clippy does not take for one"
)]

mod fixture;
mod hostile;
mod isolation;
mod sessions;
mod starting;
mod stopping;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(code) = hostel_instance::run_role(std::env::args_os()) {
        return code;
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, root, cgroup @ ..] = &words[..]
        && flag == "--caller"
    {
        stopping::be_a_caller(root, cgroup.first().map(String::as_str));
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for (name, test) in [
        isolation::TESTS,
        sessions::TESTS,
        starting::TESTS,
        hostile::TESTS,
        stopping::TESTS,
    ]
    .into_iter()
    .flatten()
    {
        trials.push(Trial::test(*name, move || {
            if fixture::required(name).is_some() {
                test();
            }
            Ok(())
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    fixture::remove_cgroup();
    conclusion.exit_code()
}
