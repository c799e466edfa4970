//! Network namespaces of a test, on threads of their own.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use hostel_sys::namespace;
use hostel_testkit::{Need, require};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace. It is gone when this is dropped and nothing else holds it.
pub(crate) struct Space {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    netns: OwnedFd,
}

impl Space {
    /// Makes a namespace; `None`, told as a skip, without the right to.
    pub(crate) fn new(test: &str) -> Option<Self> {
        require(test, Need::Root)?;
        let (jobs, work) = mpsc::channel::<Job>();
        let (told, netns) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            namespace::unshare_network().unwrap();
            told.send(namespace::network_of_thread().unwrap()).unwrap();
            for job in work {
                job();
            }
        });
        Some(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            netns: netns.recv().unwrap(),
        })
    }

    /// Does something in the namespace.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = move || {
            let _ = done.send(job());
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        result.recv().expect("the job did not panic")
    }

    /// Runs a program in the namespace; its output, when it succeeded.
    pub(crate) fn sh(&self, line: &str) -> Result<String, String> {
        let line = line.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-c", &line]).output().unwrap();
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            if output.status.success() {
                Ok(text(&output.stdout))
            } else {
                Err(format!("{line}: {}", text(&output.stderr)))
            }
        })
    }

    pub(crate) fn netns(&self) -> OwnedFd {
        self.netns.try_clone().unwrap()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().unwrap().join();
    }
}
