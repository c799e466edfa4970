//! The vhost-user-vsock device: virtio queues on one side, [`Mux`] on the other.
//!
//! One value serves one connection of QEMU, from plug to unplug. All work is done on the library's queue thread; the thread
//! that answers QEMU's messages only stops and starts queues, under the same lock.

mod conn;
pub(crate) mod lone;
mod mux;
mod packet;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tracing::debug;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringState, VringT as _};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::{QueueOwnedT as _, QueueT as _};
use vm_memory::{GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use self::{
    mux::Mux,
    packet::{HEADER_LEN, Header, MAX_PAYLOAD},
};
use crate::port::Ports;

/// Queue to the guest, queue from the guest, and the event queue, which QEMU keeps for itself.
const NUM_QUEUES: usize = 3;
const RX: usize = 0;
const TX: usize = 1;
const MAX_QUEUE_SIZE: usize = 1024;
/// The library's number for "something of the backend's own happened"; those up to [`NUM_QUEUES`] are taken.
pub(crate) const BACKEND_EVENT: u64 = NUM_QUEUES as u64 + 1;
/// Its number for "it is time to look whether anything happened".
pub(crate) const LOOK_EVENT: u64 = BACKEND_EVENT + 1;

/// How long a notification that got lost goes unnoticed.
///
/// The guest tells of a packet only when it sees that the device sleeps, and for that its store of the packet must be seen
/// before its look. TCG with one processor leaves the barrier between the two out (its atomic operations are not, without
/// CF_PARALLEL), although the device runs on another processor of the host. What is missed once is missed for ever: the guest
/// does not tell twice.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 250_000_000,
};

/// How many chains of one queue are worked on before the other has its turn.
const BUDGET: usize = 256;
/// How often both queues have their turn before the thread looks at its events again.
const ROUNDS: usize = 4;

type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;
type Snapshot = GuestMemoryLoadGuard<GuestMemoryMmap<()>>;

struct State {
    mux: Mux,
    /// For payload on its way between queue and socket.
    scratch: Vec<u8>,
    /// Where the queues stood when they were last worked on.
    positions: [u16; 2],
    /// A queue was stopped since.
    stopped: bool,
}

pub(crate) struct Device {
    guest_cid: u64,
    memory: Memory,
    /// Descriptor of the events of sockets and of `wake`.
    events: OwnedFd,
    wake: OwnedFd,
    /// A timer, of [`LOOK`].
    look: OwnedFd,
    /// The queue thread is to end.
    ending: AtomicBool,
    state: Mutex<State>,
}

impl Device {
    pub(crate) fn new(guest_cid: u64, ports: Arc<Ports>) -> io::Result<Self> {
        let mux = Mux::new(guest_cid, ports)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let look = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let often = Itimerspec {
            it_interval: LOOK,
            it_value: LOOK,
        };
        timerfd_settime(&look, TimerfdTimerFlags::empty(), &often)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &events,
            mux.epoll(),
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )?;
        epoll::add(
            &events,
            &wake,
            epoll::EventData::new_u64(1),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            guest_cid,
            memory: GuestMemoryAtomic::new(GuestMemoryMmap::new()),
            events,
            wake,
            look,
            ending: AtomicBool::new(false),
            state: Mutex::new(State {
                mux,
                scratch: vec![0; MAX_PAYLOAD],
                positions: [0; 2],
                stopped: false,
            }),
        })
    }

    pub(crate) fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Returns the descriptor that the queue thread must watch with [`BACKEND_EVENT`]. It lives as long as this value.
    pub(crate) fn events_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// Returns the descriptor that it must watch with [`LOOK_EVENT`]; the same holds.
    pub(crate) fn look_fd(&self) -> RawFd {
        self.look.as_raw_fd()
    }

    /// Makes the queue thread end.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.wake();
    }

    /// Ends every connection.
    pub(crate) fn disconnect(&self) {
        self.lock().mux.remove_all();
    }

    fn wake(&self) {
        // A full counter has the same effect.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves packets both ways until nothing is left to do, or others should have their turn.
    fn pump(&self, vrings: &[VringRwLock]) {
        let mut state = self.lock();
        for told in [&self.wake, &self.look] {
            let _ = rustix::io::read(told, &mut [0; 8]);
        }
        // Also when the queues are not running yet: the events are noted in the connections and lose nothing by waiting.
        state.mux.socket_events();
        let (Some(rx), Some(tx)) = (vrings.get(RX), vrings.get(TX)) else {
            return;
        };
        if !is_running(rx) || !is_running(tx) {
            return;
        }
        let positions = [rx.queue_next_avail(), tx.queue_next_avail()];
        if std::mem::take(&mut state.stopped) && positions != state.positions {
            // The queues begin anew, so the guest's driver does, and it knows nothing of its connections. Had the VM only
            // been paused, they would go on where they stood.
            debug!("the driver was reset; connections end");
            state.mux.remove_all();
        }
        let memory = self.memory.memory();
        let mut more = false;
        for _ in 0..ROUNDS {
            let state = &mut *state;
            let sent = from_guest(
                &mut tx.get_mut(),
                &memory,
                &mut state.mux,
                &mut state.scratch,
            );
            // An event is told once, so what it makes ready must be sent after it, in the same round; one that comes later
            // wakes this thread again.
            state.mux.socket_events();
            let received = to_guest(
                &mut rx.get_mut(),
                &memory,
                &mut state.mux,
                &mut state.scratch,
            );
            match (sent, received) {
                (Ok(a), Ok(b)) => more = a == Turn::Budget || b == Turn::Budget,
                (Err(error), _) | (_, Err(error)) => {
                    // The rings in guest memory make no sense. Only the guest can mend them; it is not asked again.
                    debug!(%error, "broken queue");
                    more = false;
                }
            }
            if !more {
                break;
            }
        }
        state.positions = [rx.queue_next_avail(), tx.queue_next_avail()];
        if more {
            self.wake();
        }
    }
}

fn is_running(vring: &VringRwLock) -> bool {
    let state = vring.get_ref();
    state.is_enabled() && state.get_queue().ready()
}

/// How a turn of one queue ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing more to do; the guest will notify.
    Done,
    /// There may be more.
    Budget,
}

/// Takes packets from the guest.
fn from_guest(
    vring: &mut VringState<Memory>,
    memory: &Snapshot,
    mux: &mut Mux,
    scratch: &mut [u8],
) -> Result<Turn, virtio_queue::Error> {
    let mut budget = BUDGET;
    let mut used = false;
    let mut fruitless = false;
    let turn = loop {
        vring.disable_notification()?;
        while budget > 0 {
            let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone()) else {
                break;
            };
            budget -= 1;
            fruitless = false;
            let head = chain.head_index();
            let mut raw = [0; HEADER_LEN];
            if let Ok(mut reader) = chain.reader(memory)
                && reader.read_exact(&mut raw).is_ok()
            {
                let header = Header::decode(&raw);
                let want = (header.len as usize)
                    .min(scratch.len())
                    .min(reader.available_bytes());
                let payload = &mut scratch[..want];
                // Payload that is missing or too long shows as a length that differs.
                if reader.read_exact(payload).is_ok() {
                    mux.packet(&header, payload);
                }
            } else {
                debug!("chain without a whole header dropped");
            }
            vring.add_used(head, 0)?;
            used = true;
        }
        if budget == 0 {
            break Turn::Budget;
        }
        // True again without a chain in between means that the guest wrote nonsense in the ring.
        if !vring.enable_notification()? || fruitless {
            break Turn::Done;
        }
        fruitless = true;
    };
    signal(vring, used)?;
    Ok(turn)
}

/// Gives packets to the guest, as long as it offers buffers.
fn to_guest(
    vring: &mut VringState<Memory>,
    memory: &Snapshot,
    mux: &mut Mux,
    scratch: &mut [u8],
) -> Result<Turn, virtio_queue::Error> {
    let mut budget = BUDGET;
    let mut used = false;
    let mut fruitless = false;
    let turn = loop {
        if !mux.has_output() {
            break Turn::Done;
        }
        if budget == 0 {
            break Turn::Budget;
        }
        vring.disable_notification()?;
        let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone()) else {
            // Starved: the guest notifies when it has offered buffers again.
            if !vring.enable_notification()? || fruitless {
                break Turn::Done;
            }
            fruitless = true;
            continue;
        };
        budget -= 1;
        fruitless = false;
        let head = chain.head_index();
        let mut len = 0;
        if let Ok(mut writer) = chain.writer(memory)
            && let Some(room) = writer.available_bytes().checked_sub(HEADER_LEN)
        {
            let room = room.min(scratch.len());
            let Some(header) = mux.next(&mut scratch[..room]) else {
                vring.get_queue_mut().go_to_previous_position();
                break Turn::Done;
            };
            let payload = &scratch[..header.len as usize];
            // Both fit in what `available_bytes` promised.
            if writer
                .write_all(&header.encode())
                .and_then(|()| writer.write_all(payload))
                .is_ok()
            {
                len = (HEADER_LEN + payload.len()) as u32;
            }
        }
        vring.add_used(head, len)?;
        used = true;
    };
    signal(vring, used)?;
    Ok(turn)
}

/// Tells the guest that chains were used, if it wants to know.
fn signal(vring: &mut VringState<Memory>, used: bool) -> Result<(), virtio_queue::Error> {
    if used && vring.needs_notification()? {
        // A full counter has the same effect; a queue without one is polled.
        let _ = vring.signal_used_queue();
    }
    Ok(())
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        NUM_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    // The queues know it themselves.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.guest_cid.to_le_bytes();
        let from = (offset as usize).min(config.len());
        let to = from.saturating_add(size as usize).min(config.len());
        config[from..to].to_vec()
    }

    // Every look at memory goes through the shared value, which the library has replaced already.
    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn reset_device(&self) {
        self.lock().mux.remove_all();
    }

    fn stop_vring(&self, _queue_index: u32) -> io::Result<()> {
        // Taking the lock waits for the queue thread to let go of the queue.
        self.lock().stopped = true;
        Ok(())
    }

    fn handle_event(
        &self,
        _device_event: u16,
        _evset: EventSet,
        vrings: &[VringRwLock],
        _thread_id: usize,
    ) -> io::Result<()> {
        if self.ending.load(Ordering::Acquire) {
            // The library's own exit event leaks a descriptor each time; an error ends the thread as well.
            return Err(io::Error::other("the device was unplugged"));
        }
        self.pump(vrings);
        Ok(())
    }
}
