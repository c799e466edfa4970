//! What the host knows about resolvers: its `resolv.conf`.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

/// The largest `resolv.conf` that is read, in bytes.
pub(crate) const MAX_FILE: u64 = 256 << 10;
/// The most servers that are asked. libc takes three; some hosts list more.
const MAX_SERVERS: usize = 8;
/// The most search domains.
const MAX_SEARCH: usize = 32;
/// The most servers that a guest is given (DNS-4).
const MAX_FOR_GUEST: usize = 3;

/// The host's resolvers and search domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostDns {
    /// The servers as the host lists them; stubs on its loopback among them.
    pub servers: Vec<IpAddr>,
    /// The search domains.
    pub search: Vec<String>,
    /// Servers that a guest can ask itself, at most three, IPv4 before IPv6 (DNS-4): those behind a stub in place of
    /// the stub.
    pub for_guest: Vec<IpAddr>,
}

/// Whom to ask and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upstreams {
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) timeout: Duration,
    pub(crate) attempts: u32,
    pub(crate) rotate: bool,
}

impl Default for Upstreams {
    /// As libc does without a file, but for its habit to ask 127.0.0.1.
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
        }
    }
}

/// A `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    pub(crate) upstreams: Upstreams,
    search: Vec<String>,
}

impl ResolvConf {
    /// Reads a text as libc does: unknown words are passed over, of `domain` and `search` the last one counts.
    ///
    /// `port` is where servers listen, `index` finds the number of an interface by its name.
    pub(crate) fn parse(text: &str, port: u16, index: impl Fn(&str) -> Option<u32>) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut fields = line.split_whitespace();
            match fields.next() {
                Some("nameserver") => {
                    let server = fields.next().and_then(|text| server(text, port, &index));
                    let servers = &mut conf.upstreams.servers;
                    if let Some(server) = server
                        .filter(|server| servers.len() < MAX_SERVERS && !servers.contains(server))
                    {
                        servers.push(server);
                    }
                }
                Some("domain") => conf.search = search(fields.take(1)),
                Some("search") => conf.search = search(fields),
                Some("options") => fields.for_each(|option| conf.upstreams.option(option)),
                _ => {}
            }
        }
        conf
    }

    /// Returns what others may know; `behind` are the files that name the servers behind a stub.
    pub(crate) fn host_dns(&self, behind: &[Self]) -> HostDns {
        let useful = |conf: &Self| -> Vec<IpAddr> {
            let mut servers: Vec<IpAddr> = conf
                .upstreams
                .servers
                .iter()
                .map(|server| server.ip().to_canonical())
                .filter(is_reachable_from_guest)
                .collect();
            servers.sort_by_key(IpAddr::is_ipv6);
            servers.truncate(MAX_FOR_GUEST);
            servers
        };
        let for_guest = std::iter::once(self)
            .chain(behind)
            .map(useful)
            .find(|servers| !servers.is_empty())
            .unwrap_or_default();
        HostDns {
            servers: self.upstreams.servers.iter().map(SocketAddr::ip).collect(),
            search: self.search.clone(),
            for_guest,
        }
    }
}

impl Upstreams {
    fn option(&mut self, option: &str) {
        let number = |text: &str| text.parse::<u32>().ok();
        if let Some(seconds) = option.strip_prefix("timeout:").and_then(number) {
            // libc's bounds.
            self.timeout = Duration::from_secs(u64::from(seconds.clamp(1, 30)));
        } else if let Some(attempts) = option.strip_prefix("attempts:").and_then(number) {
            self.attempts = attempts.clamp(1, 5);
        } else if option == "rotate" {
            self.rotate = true;
        }
    }
}

/// The host's loopback and its links mean something else in the guest, or nothing.
fn is_reachable_from_guest(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}

fn server(text: &str, port: u16, index: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Some((address, zone)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let scope = zone.parse().ok().or_else(|| index(zone))?;
        return Some(SocketAddrV6::new(address, port, 0, scope).into());
    }
    let address: IpAddr = text.parse().ok()?;
    // Towards an unspecified address Linux sends to itself, and that is what libc gets.
    (!address.is_multicast()).then(|| SocketAddr::new(address, port))
}

fn search<'a>(fields: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for field in fields.take(MAX_SEARCH) {
        let name = field.strip_suffix('.').unwrap_or(field);
        if crate::message::is_name(name) && !found.iter().any(|n| n.eq_ignore_ascii_case(name)) {
            found.push(name.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ResolvConf {
        ResolvConf::parse(text, 53, |name| (name == "eth0").then_some(7))
    }

    fn texts(servers: &[IpAddr]) -> Vec<String> {
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn resolv_conf_is_read_as_libc_reads_it() {
        let conf = parse(
            "# c\n; c\nnameserver 10.0.0.1 # first\nnameserver\t2001:db8::1\nnameserver fe80::1%eth0\nnameserver fe80::2%9\n\
             nameserver fe80::3%none\nnameserver x\nnameserver 10.0.0.1\ndomain a.example\nsearch b.example. c.example B.example .\n\
             options ndots:2 timeout:0 attempts:99 rotate timeout:x\nunknown word\nnameserver",
        );
        let servers: Vec<String> = conf
            .upstreams
            .servers
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            servers,
            [
                "10.0.0.1:53",
                "[2001:db8::1]:53",
                "[fe80::1%7]:53",
                "[fe80::2%9]:53"
            ]
        );
        assert_eq!(conf.search, ["b.example", "c.example"]);
        assert_eq!(
            (
                conf.upstreams.timeout,
                conf.upstreams.attempts,
                conf.upstreams.rotate
            ),
            (Duration::from_secs(1), 5, true)
        );
        assert_eq!(parse("search a b\ndomain c d\n").search, ["c"]);
        assert_eq!(parse(""), ResolvConf::default());
    }

    /// DNS-4.
    #[test]
    fn a_guest_is_given_servers_that_it_can_reach() {
        let behind = [
            parse(""),
            parse(
                "nameserver fd00::1\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n",
            ),
        ];
        let stub = parse("nameserver 127.0.0.53\nsearch corp.example\n").host_dns(&behind);
        assert_eq!(texts(&stub.servers), ["127.0.0.53"]);
        assert_eq!(texts(&stub.for_guest), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(stub.search, ["corp.example"]);
        let mixed = parse("nameserver 2001:db8::1\nnameserver ::1\nnameserver 192.0.2.1\n");
        assert_eq!(
            texts(&mixed.host_dns(&behind).for_guest),
            ["192.0.2.1", "2001:db8::1"]
        );
        assert_eq!(parse("").host_dns(&[]), HostDns::default());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "((nameserver|search|domain|options) |\\PC{0,12}|\n){0,30}") {
            let dns = parse(&text).host_dns(&[]);
            proptest::prop_assert!(dns.servers.len() <= MAX_SERVERS && dns.search.len() <= MAX_SEARCH);
            proptest::prop_assert!(dns.for_guest.iter().all(is_reachable_from_guest));
        }
    }
}
