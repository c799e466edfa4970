//! Sizes, counts and times that both ends of a hop keep, so that neither can exhaust the other.

use std::time::Duration;

/// The largest gRPC message either way, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The most arguments of a command.
pub const MAX_ARGS: usize = 4096;

/// The most bytes of a command's arguments and environment together, below [`MAX_MESSAGE`].
pub const MAX_ARG_BYTES: usize = 512 << 10;

/// The most sessions that live at one time in one VM.
pub const MAX_SESSIONS: usize = 1024;

/// The most raw streams that wait to be claimed at one time.
pub const MAX_UNCLAIMED_STREAMS: usize = 4096;

/// How long a token waits to be claimed.
pub const CLAIM_TIMEOUT: Duration = Duration::from_secs(60);

/// The vsock port on the host that the guest's agent dials to serve gRPC.
pub const CONTROL_PORT: u32 = 50_000;

/// The vsock port on the host that the guest dials for each raw stream.
pub const STREAM_PORT: u32 = 50_001;

/// The name of the virtio-serial port for life cycle (ping, prepare, resume).
pub const LIFECYCLE_PORT_NAME: &str = "hostel.lifecycle";
