//! The program as a child that a test waits for.

use std::{
    io::Read,
    process::{Child, Command, ExitStatus, Output},
    sync::mpsc,
};

use super::PATIENCE;

/// A running client; killed when a test fails.
pub(crate) struct Running(Option<Child>);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("not finished yet")
    }

    pub(crate) fn pid(&mut self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.child())
    }

    pub(crate) fn kill(&mut self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end, with a deadline.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let pidfd =
            rustix::process::pidfd_open(self.pid(), rustix::process::PidfdFlags::empty()).unwrap();
        let timeout = rustix::event::Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        assert_eq!(
            rustix::event::poll(&mut fds, Some(&timeout)).unwrap(),
            1,
            "the client ends"
        );
        self.child().wait().unwrap()
    }

    /// Waits for the end and returns everything that was printed.
    pub(crate) fn finish(mut self) -> Output {
        let (send, receive) = mpsc::channel();
        let child = self.0.take().expect("not finished yet");
        let pid = rustix::process::Pid::from_child(&child);
        std::thread::spawn(move || send.send(child.wait_with_output()));
        let Ok(output) = receive.recv_timeout(PATIENCE) else {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("the client does not end");
        };
        output.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
/// Texts of an output, for comparing.
pub(crate) fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Reads until a text has come, with a deadline.
pub(crate) fn read_until(from: &mut (impl Read + std::os::fd::AsFd), wanted: &str) -> String {
    let timeout = rustix::event::Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    let mut got = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&got).contains(wanted) {
        let mut fds = [rustix::event::PollFd::new(
            from,
            rustix::event::PollFlags::IN,
        )];
        let ready = rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
        assert_eq!(
            ready,
            1,
            "wanted {wanted:?}, got {:?}",
            String::from_utf8_lossy(&got)
        );
        match from.read(&mut byte) {
            Ok(1) => got.push(byte[0]),
            end => panic!(
                "wanted {wanted:?}, got {:?} and then {end:?}",
                String::from_utf8_lossy(&got)
            ),
        }
    }
    String::from_utf8_lossy(&got).into_owned()
}
