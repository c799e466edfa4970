//! The server: one process, one thread, one client, one network.

mod check;
mod confine;
mod fail;
mod forwarding;
mod guard;
mod mark;
mod namespace;
mod network;
mod rules;
mod serve;
mod sockets;
mod surroundings;
mod survey;
mod sysctl;
mod uplink;

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use hostel_sys::{
    fdpass,
    process::{SingleThreaded, StdStream},
};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::{
    client::Mode,
    protocol::{Event, Message, Refusal, RefusalCode},
};
use fail::OrRefuse;

/// Why the program ends with a failure.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It was not started by a client of this crate.
    #[error("this program is started by hosteld: its standard input is not such a socket")]
    NoClient,
    /// It cannot work here; the client was told as well.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Serves the client on the standard input until that closes its end, then takes the network down.
///
/// Must be the first thing in a process with one thread, as it closes descriptors that it does not know and gives up
/// rights. In a user namespace the process forks.
pub fn run(mode: &Mode) -> Result<(), ServerError> {
    let proof = SingleThreaded::check().map_err(|_| ServerError::NoClient)?;
    hostel_sys::confine::close_strays(&proof)
        .and_then(|()| hostel_sys::confine::clear_environment(&proof))
        .or_refuse("cannot begin")?;
    let mut socket = client_socket(&proof)?;
    let outcome = match mode {
        Mode::Host => confine::to_network(&proof).and_then(|()| serve::host(&socket)),
        Mode::UserNamespace { pasta } => confine::is_unprivileged()
            .and_then(|()| namespace::enter_and_serve(&proof, &mut socket, pasta.clone())),
    };
    if let Err(refusal) = &outcome {
        // A client that has gone needs no words.
        let _ = send(
            &socket,
            &Message::Event(Event::Failed(refusal.clone())),
            &[],
        );
    }
    Ok(outcome?)
}

/// Takes the client's socket from the standard input, and leaves nothing there.
fn client_socket(_proof: &SingleThreaded) -> Result<OwnedFd, ServerError> {
    let input = rustix::stdio::stdin();
    let fits = sockopt::socket_domain(input) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(input) == Ok(SocketType::SEQPACKET);
    if !fits {
        return Err(ServerError::NoClient);
    }
    let what = "cannot take the socket";
    let socket = rustix::io::fcntl_dupfd_cloexec(input, 3).or_refuse(what)?;
    let null = namespace::null().or_refuse(what)?;
    hostel_sys::process::put_stdio(null.as_fd(), StdStream::Input).or_refuse(what)?;
    Ok(socket)
}

/// Sends a message; waits when the client is slow, but not for long.
fn send(socket: &OwnedFd, message: &Message, fds: &[OwnedFd]) -> Result<(), Refusal> {
    let text =
        serde_json::to_vec(message).map_err(|error| Refusal::of(RefusalCode::Failed, &error))?;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    fdpass::send(socket, &text, &fds).or_refuse("cannot answer")
}

/// Where the program for the way out is.
type Pasta = Option<PathBuf>;
