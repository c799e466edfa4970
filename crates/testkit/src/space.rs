//! Network namespaces that belong to a test: nothing that happens in one can be seen outside.

use std::{
    os::fd::OwnedFd,
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use rustix::thread::UnshareFlags;

use crate::{Need, require};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread in it. It is gone when this is dropped and nothing else holds it.
pub struct Space {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    netns: OwnedFd,
}

impl Space {
    /// Makes a namespace with its loopback down; `None`, told as a skip, without the right to.
    #[must_use]
    pub fn new(test: &str) -> Option<Self> {
        require(test, Need::Root)?;
        let (jobs, work) = mpsc::channel::<Job>();
        let (told, netns) = mpsc::channel();
        let thread = thread::spawn(move || {
            #[expect(
                deprecated,
                reason = "safe with a namespace of the network, and what replaces it is not"
            )]
            rustix::thread::unshare(UnshareFlags::NEWNET).expect("root makes namespaces");
            let own = fs_err::File::open("/proc/thread-self/ns/net").expect("there is /proc");
            let _ = told.send(OwnedFd::from(own.into_file()));
            for job in work {
                job();
            }
        });
        Some(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            netns: netns.recv().expect("the thread made its namespace"),
        })
    }

    /// Does something in the namespace, and panics when it does.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = move || {
            // Else the thread would end, and every later job with it.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            let _ = done.send(outcome);
        };
        let jobs = self.jobs.as_ref().expect("only dropping takes it");
        jobs.send(Box::new(job)).expect("the thread runs");
        match result.recv().expect("every job says something") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a line of shell in the namespace; its output, or what it complained about.
    pub fn sh(&self, line: &str) -> Result<String, String> {
        let line = line.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-c", &line]).output();
            let output = output.map_err(|e| format!("{line}: {e}"))?;
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            if output.status.success() {
                Ok(text(&output.stdout))
            } else {
                Err(format!("{line}: {}", text(&output.stderr)))
            }
        })
    }

    /// Returns the namespace, to put a program or an interface into it.
    pub fn netns(&self) -> OwnedFd {
        self.netns.try_clone().expect("a descriptor is free")
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_in_a_space_stays_there() {
        let Some(space) = Space::new("space::tests::what_happens_in_a_space_stays_there") else {
            return;
        };
        let inode = || std::fs::read_link("/proc/thread-self/ns/net").expect("there is /proc");
        assert_ne!(space.run(inode), inode());
        let inside = space.run(inode);
        let seen = space.sh("readlink /proc/self/ns/net").expect("a shell");
        assert_eq!(seen.trim(), inside.to_str().expect("plain text"));
        assert!(
            space
                .sh("echo no >&2; false")
                .is_err_and(|e| e.contains("no"))
        );
        let panic = || space.run(|| panic!("in there"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panic)).is_err());
        assert_eq!(space.run(|| 7), 7);
    }
}
