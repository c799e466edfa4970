//! Ways in for fuzzing from outside of this crate: what is parsed here of kernels, packages and modules, by itself.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    DebError, ImageError, ModuleError, bzimage,
    deb::{self, Taken},
    modinfo::{self, ModInfo},
    modules, tree,
};

/// Takes a kernel image apart; returns its release and the size of its vmlinux.
pub fn image(bytes: &[u8]) -> Result<(String, usize), ImageError> {
    bzimage::open(bytes.to_vec()).map(|image| (image.release, image.vmlinux.len()))
}

/// Unpacks a package into `modules`; tells whether it held a kernel image.
pub fn package(reader: impl Read, modules: &Path) -> Result<bool, DebError> {
    let mut taken = Taken::default();
    deb::unpack_from(
        reader,
        Path::new("package"),
        modules,
        &mut taken,
        &mut |_| {},
    )?;
    Ok(taken.vmlinuz.is_some())
}

/// Returns how many facts a module tells of itself; `None` when it is not one.
pub fn module(bytes: &[u8]) -> Option<usize> {
    let aliases = modinfo::builtin_aliases(bytes).len();
    ModInfo::of_module(bytes).map(|info| {
        aliases
            + info.depends.len()
            + info.aliases.len()
            + info.soft_pre.len()
            + info.softdeps.len()
    })
}

/// Writes the index files for the modules in `dir`; returns the paths of all files there.
pub fn indexes(dir: &Path, release: &str) -> Result<Vec<PathBuf>, ModuleError> {
    modules::write_indexes(dir, release)?;
    Ok(tree::files(dir).unwrap_or_default())
}
