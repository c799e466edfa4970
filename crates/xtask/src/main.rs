//! What a developer and CI do with this workspace: build everything, test it, check the rules of the house.
//!
//! Nothing ships from here; it uses nothing of ours, so that it is compiled in seconds.
#![expect(clippy::print_stderr, reason = "its output is its purpose")]

mod bench;
mod build;
mod elf;
mod house;
mod lint;
mod man;
mod run;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask <COMMAND>

Commands:
  build [--release]           Build hostel, hosteld and the guest's static /init
  test [--fast] [-- ARGS...]  Build, then run the tests; --fast leaves out those with real VMs
  bench [--rounds N]          Build for release, measure the promises, write docs/benchmarks.md
  lint                        Check formatting, clippy, documentation, the rules of the house, man pages
  man [--check]               Generate docs/man from the program's own definitions, or check that it is current
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["build"] => build::build(build::Profile::Debug).map(drop),
        ["build", "--release"] => build::build(build::Profile::Release).map(drop),
        ["test", ref rest @ ..] => match rest {
            [] => test::test(test::Which::All, &[]),
            ["--fast"] => test::test(test::Which::Fast, &[]),
            ["--", arguments @ ..] => test::test(test::Which::All, arguments),
            ["--fast", "--", arguments @ ..] => test::test(test::Which::Fast, arguments),
            _ => return usage(),
        },
        ["bench"] => bench::bench(None),
        ["bench", "--rounds", rounds] => bench::bench(Some(rounds)),
        ["lint"] => lint::lint(),
        ["man"] => man::generate(),
        ["man", "--check"] => man::check(),
        ["help" | "--help" | "-h"] => {
            eprint!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => return usage(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprint!("{HELP}");
    ExitCode::from(2)
}
