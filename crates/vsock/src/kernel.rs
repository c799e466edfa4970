//! The channel through the kernel: `/dev/vhost-vsock` for QEMU, AF_VSOCK listeners for us.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::Connection;

/// The device QEMU opens.
pub(crate) const DEVICE: &str = "/dev/vhost-vsock";

/// Any free port (VMADDR_PORT_ANY).
const PORT_ANY: u32 = u32::MAX;

/// Checks that this process may open the device, and chooses an address for the guest.
///
/// Addresses are global on a host. One in 2^31 chosen at random is free unless the host runs an absurd number of VMs, and QEMU
/// refuses one that is in use ("Address already in use") before the guest runs: then the channel is opened again.
pub(crate) fn open() -> io::Result<u32> {
    fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)?;
    let mut bytes = [0; 4];
    let n = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if n != bytes.len() {
        return Err(io::Error::other("the kernel gave too few random bytes"));
    }
    // 0 to 2 and the highest value have meanings of their own.
    Ok(0x1000 + (u32::from_ne_bytes(bytes) & 0x7fff_0fff))
}

/// Listens on a port of the host, any free one for 0. Needs a tokio runtime.
pub(crate) fn listen(port: u32) -> io::Result<VsockListener> {
    let port = if port == 0 { PORT_ANY } else { port };
    VsockListener::bind(VsockAddr::new(VMADDR_CID_HOST, port))
}

/// Takes the next connection of our guest. Other VMs and processes of this host can dial the port as well: they are refused.
pub(crate) async fn accept(listener: &mut VsockListener, guest_cid: u32) -> io::Result<Connection> {
    loop {
        let (stream, peer) = listener.accept().await?;
        if peer.cid() == guest_cid {
            return Ok(Connection::from_kernel(stream, peer.port()));
        }
        tracing::debug!(
            cid = peer.cid(),
            port = peer.port(),
            "connection of a stranger refused"
        );
    }
}
