//! Everything that can be judged without running what was built.

use anyhow::{Result, bail};

use crate::{
    build::BUILD_LIMIT,
    house, man,
    run::{cargo, step},
};

/// Runs every check, also when one fails, and fails when one did.
pub(crate) fn lint() -> Result<()> {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    let results = [
        step(
            "formatting",
            &mut cargo(&["fmt", "--all", "--check"]),
            BUILD_LIMIT,
        ),
        step(
            "clippy",
            &mut cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
            BUILD_LIMIT,
        ),
        step("documentation", &mut doc, BUILD_LIMIT),
        told("layers", house::layers()),
        told("the guest's dependencies", house::guest_tree()),
        told("sources", house::sources()),
        man::check(),
    ];
    let failed: Vec<String> = results
        .into_iter()
        .filter_map(Result::err)
        .map(|e| format!("{e:#}"))
        .collect();
    if !failed.is_empty() {
        bail!("{} checks failed:\n{}", failed.len(), failed.join("\n"));
    }
    Ok(())
}

fn told(what: &str, result: Result<()>) -> Result<()> {
    match &result {
        Ok(()) => eprintln!("── {what}: good"),
        Err(error) => eprintln!("── {what}: {error:#}"),
    }
    result
}
