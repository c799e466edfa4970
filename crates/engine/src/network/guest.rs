//! What the guest is told about its network.

use std::net::{IpAddr, Ipv4Addr};

use hostel_dns::HostDns;
use hostel_proto::v1;
use hostel_switch::GuestNetwork;

use super::DnsMode;

/// Who answers the guest's questions, as it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GuestDns {
    pub(super) servers: Vec<String>,
    pub(super) search: Vec<String>,
    /// The address that the tunnel serves; empty: none.
    pub(super) tunnel: String,
}

/// Works out who answers. `proxied` tells whether the gateway's port 53 is served.
pub(super) fn guest_dns(
    mode: DnsMode,
    guest: &GuestNetwork,
    proxied: bool,
    host: &HostDns,
) -> GuestDns {
    match mode {
        DnsMode::Tunnel(address) => GuestDns {
            servers: vec![address.to_string()],
            search: host.search.clone(),
            tunnel: address.to_string(),
        },
        DnsMode::Proxy => by_gateway(guest, proxied),
        DnsMode::Host => {
            let usable: Vec<&IpAddr> = host
                .for_guest
                .iter()
                .filter(|a| a.is_ipv4() || guest.ipv6.is_some())
                .collect();
            if usable.is_empty() {
                return by_gateway(guest, proxied);
            }
            GuestDns {
                servers: usable.iter().map(ToString::to_string).collect(),
                search: host.search.clone(),
                tunnel: String::new(),
            }
        }
    }
}

fn by_gateway(guest: &GuestNetwork, proxied: bool) -> GuestDns {
    let servers: Vec<Ipv4Addr> = if proxied {
        vec![guest.gateway]
    } else {
        guest.dns.clone()
    };
    GuestDns {
        servers: servers.iter().map(ToString::to_string).collect(),
        ..GuestDns::default()
    }
}

/// Says it in the words of the wire. `host_addresses` is what is the host itself.
pub(super) fn message(
    guest: &GuestNetwork,
    dns: GuestDns,
    host_addresses: Vec<String>,
) -> v1::GuestNetwork {
    v1::GuestNetwork {
        address: guest.address.to_string(),
        prefix: guest.prefix.into(),
        gateway: guest.gateway.to_string(),
        mac: guest.mac.to_string(),
        mtu: guest.mtu,
        dns: dns.servers,
        search: dns.search,
        dns_tunnel: dns.tunnel,
        relay_address: guest
            .relay_address
            .map(|a| a.to_string())
            .unwrap_or_default(),
        ipv6_address: guest
            .ipv6
            .map(|v6| format!("{}/{}", v6.address, v6.prefix))
            .unwrap_or_default(),
        ipv6_gateway: guest
            .ipv6
            .map(|v6| v6.gateway.to_string())
            .unwrap_or_default(),
        hide_rooms: guest.hide_rooms,
        generate_resolv_conf: true,
        host_addresses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> GuestNetwork {
        GuestNetwork {
            address: Ipv4Addr::new(172, 19, 132, 144),
            prefix: 20,
            gateway: Ipv4Addr::new(172, 19, 128, 1),
            mac: "52:54:00:12:34:56".parse().unwrap(),
            mtu: 1500,
            dns: vec![Ipv4Addr::new(172, 19, 128, 53)],
            relay_address: None,
            ipv6: None,
            hide_rooms: true,
            host: None,
        }
    }

    fn host(servers: &[&str]) -> HostDns {
        HostDns {
            for_guest: servers.iter().map(|s| s.parse().unwrap()).collect(),
            search: vec!["example.test".to_owned()],
            ..HostDns::default()
        }
    }

    /// DNS-2: the tunnel's address alone, and the host's suffixes.
    #[test]
    fn the_tunnel_is_the_only_server_and_the_search_list_is_the_hosts() {
        let tunnel = Ipv4Addr::new(10, 255, 255, 254);
        let dns = guest_dns(
            DnsMode::Tunnel(tunnel),
            &guest(),
            false,
            &host(&["192.0.2.1"]),
        );
        assert_eq!(dns.servers, ["10.255.255.254"]);
        assert_eq!(dns.search, ["example.test"]);
        let message = message(&guest(), dns, vec!["192.0.2.5/32".to_owned()]);
        assert_eq!(message.dns_tunnel, "10.255.255.254");
        assert_eq!(message.host_addresses, ["192.0.2.5/32"]);
        assert!(message.hide_rooms && message.relay_address.is_empty());
    }

    /// DNS-3: the gateway without a search list; where it is not ours, the resolver of the backend.
    #[test]
    fn the_proxy_is_the_gateway_or_what_the_backend_brings() {
        for (proxied, want) in [(true, "172.19.128.1"), (false, "172.19.128.53")] {
            let dns = guest_dns(DnsMode::Proxy, &guest(), proxied, &host(&["192.0.2.1"]));
            assert_eq!(dns.servers, [want]);
            assert!(dns.search.is_empty() && dns.tunnel.is_empty());
        }
    }

    /// DNS-4.
    #[test]
    fn the_hosts_servers_are_those_that_the_guest_has_a_family_for() {
        let servers = ["192.0.2.1", "2001:db8::1"];
        let dns = guest_dns(DnsMode::Host, &guest(), true, &host(&servers));
        assert_eq!(dns.servers, ["192.0.2.1"]);
        assert_eq!(dns.search, ["example.test"]);
        let with_v6 = GuestNetwork {
            ipv6: Some(hostel_switch::GuestIpv6 {
                address: "fd00::2".parse().unwrap(),
                prefix: 64,
                gateway: "fd00::1".parse().unwrap(),
            }),
            ..guest()
        };
        let dns = guest_dns(DnsMode::Host, &with_v6, true, &host(&servers));
        assert_eq!(dns.servers, servers);
        // None that a guest can reach: only stubs on the host's loopback.
        let dns = guest_dns(DnsMode::Host, &guest(), true, &host(&[]));
        assert_eq!(dns.servers, ["172.19.128.1"]);
    }
}
