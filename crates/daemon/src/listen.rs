//! The two sockets: who may connect, and the raw streams that are claimed on one of them.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use hostel_engine::{Engine, streams::ClientStream};
use hostel_model::Token;
use hostel_proto::Connection;
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

/// How long a connection may take to send its token.
const TOKEN_TIME: Duration = Duration::from_secs(10);

/// The most connections that have not sent their token yet.
const MAX_NAMELESS: usize = 256;

/// Makes the runtime directory, or checks that the one that is there belongs to nobody else.
pub(crate) fn make_runtime_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make runtime directory `{}`", path.display()))?;
    let meta = fs_err::symlink_metadata(path)?;
    let uid = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != uid {
        bail!(
            "runtime directory `{}` belongs to user {}, not to user {uid}",
            path.display(),
            meta.uid()
        );
    }
    if meta.mode() & 0o077 != 0 {
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Listens at a path, replacing a socket that a daemon that was killed had left. The caller holds the daemon's lock.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match fs_err::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot listen at `{}`", path.display()))?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Waits for the next connection of this very user; others are turned away.
pub(crate) async fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        let uid = rustix::process::geteuid().as_raw();
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == uid => return Ok(stream),
            Ok(peer) => tracing::warn!(
                uid = peer.uid(),
                "a connection of another user was turned away"
            ),
            Err(error) => {
                tracing::debug!(%error, "a connection without credentials was turned away");
            }
        }
    }
}

/// How many clients are connected.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients(Arc<AtomicUsize>);

impl Clients {
    /// Returns how many are connected now.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a connection for as long as it lives.
    pub(crate) fn counted(&self, stream: UnixStream) -> Connection<UnixStream, Counted> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Connection::new(stream, Counted(self.clone()))
    }
}

/// Counts a connection of the API until it goes.
#[derive(Debug)]
pub(crate) struct Counted(Clients);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes raw streams for ever. What sends no token in time, or a wrong one, is dropped.
pub(crate) async fn take_streams(listener: UnixListener, engine: Arc<Engine>) -> io::Result<()> {
    let nameless = Arc::new(Semaphore::new(MAX_NAMELESS));
    loop {
        let stream = accept(&listener).await?;
        let Ok(permit) = Arc::clone(&nameless).try_acquire_owned() else {
            tracing::warn!("too many connections without a token; one was dropped");
            continue;
        };
        let broker = Arc::clone(engine.client_streams());
        tokio::spawn(async move {
            let named = tokio::time::timeout(TOKEN_TIME, read_token(&stream)).await;
            drop(permit);
            if let Ok(Ok((token, descriptor))) = named {
                let delivered = broker.deliver(&token, ClientStream { stream, descriptor });
                if delivered.is_err() {
                    tracing::debug!(?token, "a client sent a token that nobody gave out");
                }
            }
        });
    }
}

/// Reads a token and the descriptor that may come with it; not one byte more.
async fn read_token(stream: &UnixStream) -> io::Result<(Token, Option<OwnedFd>)> {
    let mut bytes = [0; Token::LEN];
    let mut have = 0;
    let mut descriptor = None;
    while have < bytes.len() {
        stream.readable().await?;
        let got = stream.try_io(Interest::READABLE, || {
            hostel_sys::fdpass::recv(stream, &mut bytes[have..])
        });
        match got {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((n, fds)) => {
                have += n;
                descriptor = descriptor.or_else(|| fds.into_iter().next());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let token = Token::from_bytes(&bytes).ok_or(io::ErrorKind::InvalidData)?;
    Ok((token, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[tokio::test]
    async fn a_token_comes_with_its_descriptor_and_leaves_what_follows() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let token = Token::new_random();
        let file = tempfile::tempfile().unwrap();
        hostel_sys::fdpass::send(&client, &token.as_bytes()[..7], &[file.as_fd()]).unwrap();
        client.write_all(&token.as_bytes()[7..]).await.unwrap();
        client.write_all(b"data").await.unwrap();
        let (got, descriptor) = read_token(&server).await.unwrap();
        assert_eq!(got, token);
        assert!(descriptor.is_some());
        let mut rest = [0; 4];
        server.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"data");
        drop(client);
        assert!(read_token(&server).await.is_err());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_by_a_private_one() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        make_runtime_dir(&run).unwrap();
        fs_err::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_runtime_dir(&run).unwrap();
        assert_eq!(fs_err::metadata(&run).unwrap().mode() & 0o777, 0o700);
        let path = run.join("api.sock");
        drop(bind(&path).unwrap());
        assert!(path.exists());
        let listener = bind(&path).unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let (near, far) = tokio::join!(UnixStream::connect(&path), accept(&listener));
        near.unwrap();
        far.unwrap();
    }
}
