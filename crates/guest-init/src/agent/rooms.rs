//! Rooms: distributions with a network namespace, an address and ports of their own; and the machine's packet filter.
//!
//! Nothing of it exists until it is needed: a machine where everybody shares the network and nothing is relayed has no rooms
//! and no table. What a killed agent leaves is little: the namespaces end with the distributions in them, the table with the
//! agent's socket; interfaces that are left are recognised by their alias.

mod room;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hostel_model::{ErrorCode, Failure};
use hostel_netlink::nft::Nft;
use hostel_netlink::{NetlinkError, Prefix, Routing};
use hostel_proto::v1;
use tokio::sync::watch;

use super::netns::Rooms;
use super::network::{Network, NetworkError, let_loopback_in};
use super::ports::Ports;
use crate::console::{Level, chain, say};
use room::{ALIAS, Plan};

/// How long a machine may take to mount its modules, which what is done here may need.
const MODULES: Duration = Duration::from_secs(20);

/// The most rooms: their interfaces have numbers.
const MAX_ROOMS: usize = 4096;

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoomError {
    #[error("`{0}` is not an address of a room")]
    BadAddress(String),
    #[error("{address} is not in the machine's network {network}")]
    Outside { address: Ipv4Addr, network: Prefix },
    #[error("{address} is the address of {holder}")]
    Taken { address: IpAddr, holder: String },
    #[error("there are {MAX_ROOMS} rooms already")]
    TooMany,
    #[error("cannot make a network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot {step}")]
    Step {
        step: &'static str,
        source: NetlinkError,
    },
    #[error("cannot change a setting of the network")]
    Setting(#[source] io::Error),
    #[error("cannot write the machine's packet filter")]
    Filter(#[source] NetlinkError),
}

/// Makes and keeps the rooms of a machine.
pub(crate) struct Keeper {
    state: Mutex<State>,
    /// Where others look for namespaces.
    rooms: Arc<Rooms>,
    /// Watches what listens in them.
    ports: Arc<Ports>,
    /// Becomes true when the kernel can load modules.
    modules: watch::Receiver<bool>,
}

#[derive(Default)]
struct State {
    network: Option<Network>,
    card: Option<u32>,
    rooms: BTreeMap<String, Room>,
    /// Holds the table, which goes when this is closed.
    filter: Option<Nft>,
}

struct Room {
    plan: Plan,
    netns: Arc<OwnedFd>,
    /// Has more than a loopback: the machine had a network when it was made.
    connected: bool,
}

impl Keeper {
    /// Makes a keeper without rooms. `modules` says when modules can be loaded.
    pub(crate) fn new(
        rooms: Arc<Rooms>,
        ports: Arc<Ports>,
        modules: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            rooms,
            ports,
            modules,
        })
    }

    /// Takes the machine's network over when it was set up: what rooms there are is told to the new card, and the table is
    /// written beside whatever comes next. Does not wait.
    pub(crate) fn configured(self: &Arc<Self>, network: Network, card: u32) {
        let keeper = self.clone();
        tokio::spawn(async move {
            let told = keeper
                .patiently(move |keeper| keeper.settle(network.clone(), card))
                .await;
            if let Err(error) = told {
                say(Level::Warning, format_args!("network: {}", chain(&error)));
            }
        });
    }

    /// Makes the room of a distribution that is about to start, in the place of one that is left of it, and returns where
    /// its network namespace is.
    pub(crate) async fn open(
        self: &Arc<Self>,
        id: String,
        wanted: v1::Room,
    ) -> Result<PathBuf, RoomError> {
        self.patiently(move |keeper| keeper.make(&id, &wanted))
            .await
    }

    /// Closes the room of a distribution, if it has one. Blocks for milliseconds.
    pub(crate) fn close(&self, id: &str) {
        if self.rooms.get(id).is_none() {
            // One that shares the network waits for nobody's room.
            return;
        }
        let mut state = self.state();
        let Some(room) = state.rooms.remove(id) else {
            return;
        };
        self.rooms.remove(id);
        // It lets go of the namespace.
        self.ports.look_again();
        let closed = room.plan.close(state.card);
        for result in [closed, state.write_filter()] {
            if let Err(error) = result {
                say(
                    Level::Warning,
                    format_args!("closing the room of distribution {id}: {}", chain(&error)),
                );
            }
        }
    }

    /// Does what may need modules of the kernel: when it fails before they can be loaded, it is done again after that.
    async fn patiently<T: Send + 'static>(
        self: &Arc<Self>,
        what: impl Fn(&Self) -> Result<T, RoomError> + Send + Sync + 'static,
    ) -> Result<T, RoomError> {
        let what = Arc::new(what);
        let mut modules = self.modules.clone();
        let had_modules = *modules.borrow_and_update();
        let attempt = async || {
            let (keeper, what) = (self.clone(), what.clone());
            let done = tokio::task::spawn_blocking(move || what(&keeper)).await;
            done.unwrap_or_else(|e| Err(RoomError::Namespace(io::Error::other(e))))
        };
        match attempt().await {
            Err(RoomError::Step { .. } | RoomError::Filter(_) | RoomError::Setting(_))
                if !had_modules =>
            {
                // Whether they came or the time is over: once more, and that counts.
                let _ = tokio::time::timeout(MODULES, modules.wait_for(|there| *there)).await;
                attempt().await
            }
            outcome => outcome,
        }
    }

    fn settle(&self, network: Network, card: u32) -> Result<(), RoomError> {
        let mut state = self.state();
        let before = state.network.as_ref();
        let resized = network
            .mtu
            .filter(|mtu| before.and_then(|n| n.mtu) != Some(*mtu));
        state.card = Some(card);
        let mut outcome = Ok(());
        for room in state.rooms.values().filter(|room| room.connected) {
            // The ways into the rooms went with the address of the card before.
            let opened = room
                .plan
                .open(&network)
                .and_then(|()| room.plan.announce(card))
                .and_then(|()| match resized {
                    Some(mtu) => room.plan.resize(&room.netns, mtu),
                    None => Ok(()),
                });
            // One that cannot be reached keeps none of the others from it.
            outcome = outcome.and(opened);
        }
        state.network = Some(network);
        state.write_filter().and(outcome)
    }

    fn make(&self, id: &str, wanted: &v1::Room) -> Result<PathBuf, RoomError> {
        let mut state = self.state();
        if let Some(old) = state.rooms.remove(id) {
            old.plan.close(state.card)?;
        }
        let plan = state.plan(wanted)?;
        state.clear_leftovers(id)?;
        let netns = Arc::new(room::namespace().map_err(RoomError::Namespace)?);
        let path = PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            netns.as_raw_fd()
        ));
        let others = netns.try_clone().map_err(RoomError::Namespace)?;
        let room = Room {
            plan: plan.clone(),
            netns: netns.clone(),
            connected: state.network.is_some(),
        };
        state.rooms.insert(id.to_owned(), room);
        if let Err(error) = state.connect(id, &plan, &netns) {
            state.rooms.remove(id);
            // The first error is the one to tell.
            let _ = plan.close(state.card);
            let _ = state.write_filter();
            return Err(error);
        }
        self.rooms.insert(id.to_owned(), others);
        self.ports.look_again();
        Ok(path)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Checks what the host wants, and chooses a name.
    fn plan(&self, wanted: &v1::Room) -> Result<Plan, RoomError> {
        let bad = |text: &str| RoomError::BadAddress(text.chars().take(64).collect());
        let address: Ipv4Addr = wanted.address.parse().map_err(|_| bad(&wanted.address))?;
        let address6: Option<Ipv6Addr> = match wanted.ipv6_address.as_str() {
            "" => None,
            text => {
                let alone = text.split_once('/').map_or(text, |(address, _)| address);
                Some(alone.parse().map_err(|_| bad(text))?)
            }
        };
        let taken = |holder: String| {
            let address = address.into();
            Err(RoomError::Taken { address, holder })
        };
        if let Some(network) = &self.network {
            let own = network.address.network();
            if !own.contains(address.into()) {
                return Err(RoomError::Outside {
                    address,
                    network: own,
                });
            }
            let holders = [
                (Some(network.address.address), "the machine"),
                (network.gateway.map(IpAddr::V4), "the gateway"),
                (network.relay.map(IpAddr::V4), "the relay"),
                (Some(own.address), "the network itself"),
            ];
            for (holder, name) in holders {
                if holder == Some(address.into()) {
                    return taken(name.to_owned());
                }
            }
        }
        let holder = self.rooms.iter().find(|(_, room)| {
            room.plan.address == address || (address6.is_some() && room.plan.address6 == address6)
        });
        if let Some((id, _)) = holder {
            return taken(format!("the room of distribution {id}"));
        }
        let link = (1..=MAX_ROOMS)
            .map(|n| format!("room{n}"))
            .find(|name| self.rooms.values().all(|room| room.plan.link != *name))
            .ok_or(RoomError::TooMany)?;
        Ok(Plan {
            link,
            address,
            address6,
            isolated: wanted.isolated,
        })
    }

    /// Removes what an agent that was killed left: interfaces with our alias that belong to no room of ours.
    fn clear_leftovers(&self, id: &str) -> Result<(), RoomError> {
        let at = |step| move |source| RoomError::Step { step, source };
        let routing = Routing::connect().map_err(at("talk to the kernel about the network"))?;
        for link in routing.links().map_err(at("list the interfaces"))? {
            let Some(of) = link.alias.strip_prefix(ALIAS) else {
                continue;
            };
            if of == id || !self.rooms.contains_key(of) {
                match routing.delete_link(link.index) {
                    Err(error) if !error.is_missing() => {
                        return Err(at("remove a room that was left")(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Connects a new room, which is in the table of rooms already. The filter is there before the first packet is.
    fn connect(&mut self, id: &str, plan: &Plan, netns: &OwnedFd) -> Result<(), RoomError> {
        let Some(network) = self.network.clone() else {
            // A machine without a network has rooms with a loopback.
            return Ok(());
        };
        plan.connect(id, netns, self.mtu(&network)?)?;
        self.write_filter()?;
        plan.furnish(netns, &network)?;
        plan.open(&network)?;
        match self.card {
            Some(card) => plan.announce(card),
            None => Ok(()),
        }
    }

    /// The MTU of the card, which nobody may have asked for.
    fn mtu(&self, network: &Network) -> Result<Option<u32>, RoomError> {
        if network.mtu.is_some() {
            return Ok(network.mtu);
        }
        let links = Routing::connect().and_then(|r| r.links());
        let links = links.map_err(|source| RoomError::Step {
            step: "look at the machine's interface",
            source,
        })?;
        let card = links.into_iter().find(|l| Some(l.index) == self.card);
        Ok(card.map(|l| l.mtu))
    }

    /// Writes the table as everything is now; the loopback is open to the relay only while the table guards it.
    fn write_filter(&mut self) -> Result<(), RoomError> {
        let plans: Vec<&Plan> = self.rooms.values().map(|room| &room.plan).collect();
        let table = table::table(self.network.as_ref(), &plans);
        let relays = self.network.as_ref().is_some_and(|n| n.relay.is_some());
        let open = |on| match let_loopback_in(on) {
            Err(NetworkError::Setting { source, .. }) if on => Err(RoomError::Setting(source)),
            _ => Ok(()),
        };
        let Some(table) = table else {
            open(false)?;
            // Closing the socket removes the table.
            self.filter = None;
            return Ok(());
        };
        let filter = match self.filter.take() {
            Some(filter) => filter,
            None => Nft::connect().map_err(RoomError::Filter)?,
        };
        let written = filter.replace(&table.owned());
        self.filter = Some(filter);
        written.map_err(RoomError::Filter)?;
        open(relays)
    }
}

/// Says to the host why a distribution has no room.
pub(crate) fn failure(name: &str, error: &RoomError) -> Failure {
    let code = match error {
        RoomError::BadAddress(_) | RoomError::Outside { .. } | RoomError::Taken { .. } => {
            ErrorCode::InvalidArgument
        }
        _ => ErrorCode::DistroStart,
    };
    let failure = Failure::from_error(code, error);
    Failure {
        message: format!(
            "cannot start distribution `{name}` with a network of its own: {}",
            failure.message
        ),
        ..failure
    }
}

#[cfg(test)]
mod tests;
