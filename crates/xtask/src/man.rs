//! Man pages, made by `hostel` itself from the definition of its command line.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    build::BUILD_LIMIT,
    run::{cargo, output, root, step, target_dir},
};

/// Where the pages are kept.
const DIR: &str = "docs/man";

/// Writes the pages; removes those that are no longer made.
pub(crate) fn generate() -> Result<()> {
    let new = make()?;
    let dir = root().join(DIR);
    fs_err::create_dir_all(&dir)?;
    for name in pages(&dir)?
        .into_keys()
        .filter(|name| !new.contains_key(name))
    {
        fs_err::remove_file(dir.join(name))?;
    }
    for (name, page) in &new {
        fs_err::write(dir.join(name), page)?;
    }
    eprintln!("── {} pages in {DIR}", new.len());
    Ok(())
}

/// Fails when the pages that are kept are not those that would be made.
pub(crate) fn check() -> Result<()> {
    let (new, old) = (make()?, pages(&root().join(DIR))?);
    let stale: Vec<&str> = new
        .keys()
        .chain(old.keys())
        .filter(|name| new.get(*name) != old.get(*name))
        .map(String::as_str)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    if !stale.is_empty() {
        bail!(
            "man pages are not current: {}; run `cargo xtask man`",
            stale.join(", ")
        );
    }
    eprintln!("── man pages: good");
    Ok(())
}

fn make() -> Result<BTreeMap<String, Vec<u8>>> {
    step(
        "build hostel for its man pages",
        &mut cargo(&["build", "--quiet", "--package", "hostel-cli"]),
        BUILD_LIMIT,
    )?;
    let dir = tempfile::tempdir()?;
    output(
        Command::new(target_dir()?.join("debug/hostel"))
            .arg("__man")
            .arg(dir.path()),
    )?;
    let made = pages(dir.path())?;
    if made.is_empty() {
        bail!("`hostel __man` made no pages");
    }
    Ok(made)
}

fn pages(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut pages = BTreeMap::new();
    if dir.is_dir() {
        for entry in fs_err::read_dir(dir)? {
            let entry = entry?;
            pages.insert(
                entry.file_name().to_string_lossy().into_owned(),
                fs_err::read(entry.path())?,
            );
        }
    }
    Ok(pages)
}
