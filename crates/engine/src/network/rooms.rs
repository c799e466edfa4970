//! Distributions with an address of their own.

use std::{net::Ipv4Addr, sync::Arc};

use hostel_model::{DistroId, ErrorCode, Failure};
use hostel_proto::v1;
use hostel_relay::Room;
use hostel_switch::NatRecord;

use super::{Live, local_address, ports::Owner};
use crate::{
    engine::{Engine, lock},
    lifecycle::DistroState,
    state::{DistroFile, NetworkKind},
    vm::Running,
};

/// How a running distribution is on the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoomPlan {
    pub(crate) kind: NetworkKind,
    /// Its own address; `None`: the VM's.
    pub(crate) address: Option<Ipv4Addr>,
}

impl RoomPlan {
    /// Says it in the words of the relay.
    pub(crate) fn room(self) -> Option<Room> {
        self.address.map(|address| Room {
            address,
            local: local_address(address),
        })
    }
}

impl Engine {
    /// Returns how a distribution is on the network: as it runs, else as it will.
    pub(crate) fn room_of(&self, record: &DistroFile) -> RoomPlan {
        let running = {
            let live = lock(&self.live);
            live.get(&record.id)
                .filter(|l| l.state == DistroState::Running)
                .map(|l| l.room)
        };
        running.unwrap_or_else(|| wanted(record))
    }

    /// Returns the addresses of the other distributions' rooms, also of those that do not use theirs now.
    fn taken_rooms(&self, except: DistroId) -> Vec<Ipv4Addr> {
        self.registry
            .list()
            .iter()
            .filter(|d| d.id != except)
            .filter_map(|d| d.address.get())
            .collect()
    }

    /// Returns the address of a distribution's room in this network: the stored one, else a new one, which is stored.
    async fn room_address(
        self: &Arc<Self>,
        record: &DistroFile,
        network: &NatRecord,
        warnings: &mut Vec<String>,
    ) -> Result<Ipv4Addr, Failure> {
        let taken = self.taken_rooms(record.id);
        let stored = record.address.get();
        let refused = match stored {
            Some(address) => match network.check_room(address, &taken) {
                Ok(()) => return Ok(address),
                Err(error) => Some((address, error)),
            },
            None => None,
        };
        let address = network
            .room_address(&record.id.to_string(), &taken)
            .ok_or_else(|| {
                Failure::new(
                    ErrorCode::DistroStart,
                    format!(
                        "no address of {} is free for `{}`",
                        network.subnet, record.name
                    ),
                )
                .hint(format!("hostel manage {} --network shared", record.name))
                .hint("hostel net set --subnet, with a larger one")
            })?;
        if let Some((old, error)) = refused {
            warnings.push(format!(
                "the address {old} of `{}` cannot be used ({error}); it has {address} from now on",
                record.name
            ));
        }
        let (id, kind) = (record.id, record.network.get());
        self.blocking(move |r| {
            r.set_network(id, kind, Some(address))
                .map_err(|e| e.failure())
        })
        .await?;
        Ok(address)
    }

    /// Works out the room that a distribution is started in.
    pub(crate) async fn plan_room(
        self: &Arc<Self>,
        record: &DistroFile,
        running: &Running,
        warnings: &mut Vec<String>,
    ) -> Result<(RoomPlan, Option<v1::Room>), Failure> {
        warnings.extend(record.problems());
        let kind = record.network.get();
        if kind == NetworkKind::Shared {
            return Ok((RoomPlan::default(), None));
        }
        let Some(network) = running.network() else {
            warnings.push(format!(
                "the VM has no network, so `{}` shares what it has",
                record.name
            ));
            return Ok((RoomPlan::default(), None));
        };
        let address = self.room_address(record, &network.record, warnings).await?;
        // A room keeps what it starts with, and the VM's may come later.
        let ipv6 = network.backend().guest().ipv6.is_some() || network.settings.ipv6.is_none();
        let room = v1::Room {
            address: address.to_string(),
            isolated: kind == NetworkKind::Isolated,
            ipv6_address: if ipv6 {
                network.record.ipv6_of(address).to_string()
            } else {
                String::new()
            },
        };
        let plan = RoomPlan {
            kind,
            address: Some(address),
        };
        Ok((plan, Some(room)))
    }

    /// Changes settings of a distribution; what runs keeps what it has.
    pub async fn manage(
        self: &Arc<Self>,
        request: v1::ManageRequest,
    ) -> Result<v1::ManageReply, Failure> {
        let record = self.resolve(&request.name)?;
        let bad = |message: String| Failure::new(ErrorCode::InvalidArgument, message);
        let kind = match request.network.as_str() {
            "" => record.network.get(),
            text => text.parse().map_err(|()| {
                bad(format!("`{}` is no kind of network", text.escape_debug()))
                    .hint("shared, own or isolated")
            })?,
        };
        let mut address = record.address.get();
        if !request.address.is_empty() {
            let wanted: Ipv4Addr = request.address.parse().map_err(|_| {
                bad(format!(
                    "`{}` is no IPv4 address",
                    request.address.escape_debug()
                ))
            })?;
            if kind == NetworkKind::Shared {
                return Err(bad(format!(
                    "`{}` shares the VM's address and can have no other",
                    record.name
                ))
                .hint(format!(
                    "hostel manage {} --network own --address {wanted}",
                    record.name
                )));
            }
            let network = self.nat_record().await?;
            network
                .check_room(wanted, &self.taken_rooms(record.id))
                .map_err(|e| {
                    let free =
                        network.room_address(&record.id.to_string(), &self.taken_rooms(record.id));
                    Failure::from_error(ErrorCode::InvalidArgument, &e).hint(free.map_or_else(
                        || "hostel net show".to_owned(),
                        |free| format!("one that is free: {free}"),
                    ))
                })?;
            address = Some(wanted);
        }
        if kind != NetworkKind::Shared
            && let Ok(network) = self.nat_record().await
        {
            let taken = self.taken_rooms(record.id);
            if address.is_none_or(|a| network.check_room(a, &taken).is_err()) {
                // Chosen now, so that it can be told.
                address = network.room_address(&record.id.to_string(), &taken);
            }
        }
        let id = record.id;
        self.blocking(move |r| r.set_network(id, kind, address).map_err(|e| e.failure()))
            .await?;
        let planned = RoomPlan {
            kind,
            address: address.filter(|_| kind != NetworkKind::Shared),
        };
        let in_force = {
            let live = lock(&self.live);
            live.get(&id)
                .filter(|l| l.state == DistroState::Running)
                .map(|l| l.room)
        };
        Ok(v1::ManageReply {
            network: kind.to_string(),
            address: planned.address.map(|a| a.to_string()).unwrap_or_default(),
            restart_needed: in_force.is_some_and(|room| room != planned),
        })
    }
}

/// Returns how a distribution that does not run will be on the network.
fn wanted(record: &DistroFile) -> RoomPlan {
    let kind = record.network.get();
    RoomPlan {
        kind,
        address: record.address.get().filter(|_| kind != NetworkKind::Shared),
    }
}

impl Live {
    /// Returns the running distributions with their rooms; `None` when the engine is gone.
    pub(super) fn owners(&self) -> Option<Vec<Owner>> {
        let engine = self.engine.upgrade()?;
        let live = lock(&engine.live);
        Some(
            engine
                .registry
                .list()
                .into_iter()
                .filter_map(|d| {
                    let state = live.get(&d.id)?;
                    matches!(state.state, DistroState::Starting | DistroState::Running).then(|| {
                        Owner {
                            id: d.id,
                            name: d.name.to_string(),
                            room: state.room.room(),
                        }
                    })
                })
                .collect(),
        )
    }
}
