//! Network namespaces other than the machine's: which distribution has one, and how something is opened in it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::thread::LinkNameSpaceType;

/// The network namespaces of distributions with a room of their own, by the distribution's id.
#[derive(Debug, Default)]
pub(crate) struct Rooms(Mutex<BTreeMap<String, Arc<OwnedFd>>>);

impl Rooms {
    /// Makes an empty table.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Notes a distribution's network namespace; the descriptor is one of `/proc/<pid>/ns/net`.
    pub(crate) fn insert(&self, distro: String, namespace: OwnedFd) {
        self.table().insert(distro, Arc::new(namespace));
    }

    /// Forgets a distribution's network namespace. Those who watch it let go of it when they look again.
    pub(crate) fn remove(&self, distro: &str) {
        self.table().remove(distro);
    }

    /// Returns a distribution's network namespace.
    pub(crate) fn get(&self, distro: &str) -> Option<Arc<OwnedFd>> {
        self.table().get(distro).cloned()
    }

    /// Lists all of them.
    pub(crate) fn list(&self) -> Vec<(String, Arc<OwnedFd>)> {
        self.table()
            .iter()
            .map(|(id, namespace)| (id.clone(), namespace.clone()))
            .collect()
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Arc<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something in another network namespace, on a thread that ends with it; what it opens (a socket) stays there and can
/// be used from anywhere. Blocks. Needs CAP_SYS_ADMIN.
pub(crate) fn within<T: Send>(
    namespace: impl AsFd,
    what: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = namespace.as_fd();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(super::STACK)
            .spawn_scoped(scope, move || {
                rustix::thread::move_into_link_name_space(
                    namespace,
                    Some(LinkNameSpaceType::Network),
                )?;
                what()
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace failed")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_refused() {
        let file = fs_err::File::open("/dev/null").unwrap();
        assert!(within(file.file(), || Ok(())).is_err());
    }

    #[test]
    fn a_room_is_found_until_it_is_forgotten() {
        let rooms = Rooms::new();
        let namespace =
            || OwnedFd::from(fs_err::File::open("/proc/self/ns/net").unwrap().into_file());
        rooms.insert("a".to_owned(), namespace());
        assert!(rooms.get("a").is_some() && rooms.get("b").is_none());
        assert_eq!(rooms.list().len(), 1);
        rooms.remove("a");
        assert!(rooms.list().is_empty());
    }
}
