//! The loop: requests of the client, changes of the kernel, news of the way out.

use std::{net::Ipv4Addr, os::fd::OwnedFd, time::Duration};

use hostel_sys::fdpass;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{SocketType, sockopt},
};

use super::{
    check,
    fail::OrRefuse,
    forwarding,
    guard::Guard,
    network::{Kernel, Network},
    send, sockets, survey,
    uplink::{self, Remote},
};
use crate::protocol::{
    Event, MAX_MESSAGE, Message, Refusal, RefusalCode, Reply, Request, Status, Up, Uplink, VERSION,
};

/// A client that does not read is gone after this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves on the host's own network.
pub(super) fn host(socket: &OwnedFd) -> Result<(), Refusal> {
    Server::begin(socket, None)?.run()
}

/// Serves in a network namespace of our own, with another process outside that starts the way out.
pub(super) fn namespace(socket: &OwnedFd, outside: Remote) -> Result<(), Refusal> {
    forwarding::enable_everywhere()?;
    Server::begin(socket, Some(outside))?.run()
}

/// A request as it came; with the number, what is wrong with the rest can be told.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Heard {
    id: u64,
    request: serde_json::Value,
}

struct Server<'a> {
    socket: &'a OwnedFd,
    kernel: Kernel,
    guard: Guard,
    network: Option<Network>,
    outside: Option<Remote>,
    tap_lost: bool,
    repairs: u64,
    /// The last thing that could not be repaired, told once.
    trouble: Option<Refusal>,
}

impl<'a> Server<'a> {
    fn begin(socket: &'a OwnedFd, outside: Option<Remote>) -> Result<Self, Refusal> {
        sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(PATIENCE))
            .or_refuse("cannot set the socket up")?;
        let server = Self {
            socket,
            kernel: Kernel::connect()?,
            guard: Guard::begin()?,
            network: None,
            outside,
            tap_lost: false,
            repairs: 0,
            trouble: None,
        };
        server.tell(Event::Ready { version: VERSION })?;
        Ok(server)
    }

    /// Runs until the client has gone; then everything is taken down, whatever the reason.
    fn run(mut self) -> Result<(), Refusal> {
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        let outcome = loop {
            match self.turn(&mut buffer) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(refusal) => break Err(refusal),
            }
        };
        let left = self.down();
        outcome.and(left)
    }

    /// Waits for something and handles it; `false` when the client has gone.
    fn turn(&mut self, buffer: &mut [u8]) -> Result<bool, Refusal> {
        let [links, tables] = self.guard.descriptors();
        let mut fds = vec![
            PollFd::new(self.socket, PollFlags::IN),
            PollFd::from_borrowed_fd(links, PollFlags::IN),
            PollFd::from_borrowed_fd(tables, PollFlags::IN),
        ];
        if let Some(outside) = &self.outside {
            fds.push(PollFd::new(outside, PollFlags::IN));
        }
        let wait = self.network.as_ref().map(|_| {
            let wait = self.guard.wait();
            Timespec {
                tv_sec: wait.as_secs() as i64,
                // A bit late is better than a turn too many.
                tv_nsec: i64::from(wait.subsec_nanos()),
            }
        });
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno).or_refuse("cannot wait"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] || ready[2] {
            self.guard.take();
        }
        if ready.get(3) == Some(&true) {
            self.hear_outside()?;
        }
        if self.network.is_some() && self.guard.is_due() {
            self.look()?;
        }
        Ok(!ready[0] || self.hear_client(buffer)?)
    }

    fn hear_client(&mut self, buffer: &mut [u8]) -> Result<bool, Refusal> {
        // Descriptors that come along are closed here: no request has any.
        let length = match fdpass::recv(self.socket, buffer) {
            Ok((length, _)) => length,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error).or_refuse("cannot hear the client"),
        };
        if length == 0 {
            return Ok(false);
        }
        if length > MAX_MESSAGE {
            return Err(Refusal::new(
                RefusalCode::Invalid,
                format!("a request is longer than {MAX_MESSAGE} bytes"),
            ));
        }
        // Without a number there is nobody to answer: such a client is not understood at all.
        let Heard { id, request } = serde_json::from_slice(&buffer[..length])
            .map_err(|e| Refusal::of(RefusalCode::Invalid, &e))?;
        let request =
            serde_json::from_value(request).map_err(|e| Refusal::of(RefusalCode::Invalid, &e));
        let (result, fds) = match request.and_then(|request| self.answer(request)) {
            Ok((reply, fds)) => (Ok(reply), fds),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        send(self.socket, &Message::Reply { id, result }, &fds)?;
        Ok(true)
    }

    fn answer(&mut self, request: Request) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        match request {
            Request::Up(up) => self.up(*up),
            Request::Firewall(rules) => {
                check::rules(&rules)?;
                let (kernel, network) = (&self.kernel, self.network.as_mut());
                network.ok_or_else(not_up)?.set_firewall(kernel, rules)?;
                Ok((Reply::Done, Vec::new()))
            }
            Request::ConnectTcp(to) => self.connect(to, SocketType::STREAM),
            Request::ConnectUdp(to) => self.connect(to, SocketType::DGRAM),
            Request::ListenDns => {
                let network = self.network.as_ref().ok_or_else(not_up)?;
                Ok((Reply::Done, sockets::dns(network.up.gateway)?))
            }
            Request::RestartUplink => {
                let network = self.network.as_ref().ok_or_else(not_up)?;
                let outside = self.outside.as_mut().ok_or_else(not_here)?;
                outside.start(&network.up)?;
                Ok((Reply::Done, Vec::new()))
            }
            Request::Status => Ok((Reply::Status(self.status()), Vec::new())),
            Request::Survey => {
                let network = self.network.as_ref().ok_or_else(not_up)?;
                let ipv6 = network.up.ipv6.is_some();
                let survey = survey::survey(&self.kernel, &network.name, ipv6)?;
                Ok((Reply::Survey(survey), Vec::new()))
            }
            Request::Down => self.down().map(|()| (Reply::Done, Vec::new())),
        }
    }

    fn up(&mut self, up: Up) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        check::up(&up)?;
        self.down()?;
        let host_loopback = match &self.outside {
            Some(_) => uplink::GATEWAY,
            None => Ipv4Addr::LOCALHOST,
        };
        let (network, tap) = Network::raise(&self.kernel, up, host_loopback)?;
        let reply = Reply::Up {
            bridge: network.name.clone(),
            tap: network.tap.clone(),
            table: network.name.clone(),
        };
        self.tap_lost = false;
        self.trouble = None;
        let network = self.network.insert(network);
        if let Some(outside) = &mut self.outside
            && outside.has_program()
            && let Err(refusal) = outside.start(&network.up)
        {
            self.down()?;
            return Err(refusal);
        }
        Ok((reply, vec![tap]))
    }

    fn down(&mut self) -> Result<(), Refusal> {
        if let Some(outside) = &mut self.outside {
            outside.stop();
        }
        let failures = match self.network.take() {
            Some(network) => network.take_down(&self.kernel),
            None => Vec::new(),
        };
        let code = failures.first().map(|first| first.code);
        match code {
            None => Ok(()),
            Some(code) => {
                let texts: Vec<String> = failures.into_iter().map(|f| f.message).collect();
                Err(Refusal::new(code, texts.join("; ")))
            }
        }
    }

    fn connect(
        &self,
        to: std::net::SocketAddr,
        kind: SocketType,
    ) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        // On the host's own network everybody has sockets of their own, and a helper with rights lends none.
        if self.outside.is_none() {
            return Err(not_here());
        }
        let network = self.network.as_ref().ok_or_else(not_up)?;
        check::destination(&network.up, to)?;
        Ok((Reply::Done, vec![sockets::begin(to, kind)?]))
    }

    fn status(&self) -> Status {
        let network = self.network.as_ref();
        Status {
            bridge: network.map(|n| n.name.clone()),
            tap: network.is_some_and(|n| n.has_tap(&self.kernel)),
            repairs: self.repairs,
            uplink: self
                .outside
                .as_ref()
                .map_or(Uplink::None, |o| o.state().clone()),
        }
    }

    /// Looks whether all is well, and tells what was not.
    fn look(&mut self) -> Result<(), Refusal> {
        let Some(network) = &mut self.network else {
            return Ok(());
        };
        match network.repair(&self.kernel) {
            Ok(found) => {
                self.trouble = None;
                for what in found.repaired {
                    self.repairs += 1;
                    self.tell(Event::Repaired(what.to_owned()))?;
                }
                if found.tap_lost && !self.tap_lost {
                    self.tell(Event::TapLost)?;
                }
                self.tap_lost = found.tap_lost;
            }
            Err(refusal) => {
                if self.trouble.as_ref() != Some(&refusal) {
                    self.tell(Event::Trouble(refusal.clone()))?;
                    self.trouble = Some(refusal);
                }
            }
        }
        if let Some(outside) = &mut self.outside
            && outside.notice(&self.kernel)
        {
            let state = outside.state().clone();
            self.tell(Event::Uplink(state))?;
        }
        Ok(())
    }

    fn hear_outside(&mut self) -> Result<(), Refusal> {
        if let Some(outside) = &mut self.outside
            && outside.hear()?
        {
            let state = outside.state().clone();
            self.tell(Event::Uplink(state))?;
        }
        Ok(())
    }

    fn tell(&self, event: Event) -> Result<(), Refusal> {
        send(self.socket, &Message::Event(event), &[])
    }
}

fn not_up() -> Refusal {
    Refusal::new(RefusalCode::NotNow, "the network is not up")
}

fn not_here() -> Refusal {
    Refusal::new(
        RefusalCode::NotNow,
        "this is for a user namespace, and the network is the host's own",
    )
}
