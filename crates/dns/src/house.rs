//! The names of the house: `host.hostel`, `vm.hostel`, and one for each distribution.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use hostel_model::DistroName;
use hostel_wslconf::clean_hostname;

use crate::message::{A, AAAA, Data, PTR, reverse_name};

/// The longest label that DNS knows.
const MAX_LABEL: usize = 63;

/// The names that no distribution gets.
const HOUSE: [&str; 2] = ["host", "vm"];

/// Who lives where. A distribution without a room of its own has the VM's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Where the host is reached from inside; empty when it cannot be.
    pub host: Vec<IpAddr>,
    /// The VM's own addresses.
    pub vm: Vec<IpAddr>,
    /// The addresses of each distribution.
    pub distros: BTreeMap<DistroName, Vec<IpAddr>>,
}

/// Returns what stands before the domain in a distribution's name: the name cleaned as a host name is (BOOT-30), in lower
/// case. A dot stays, so `Ubuntu-24.04` is `ubuntu-24.04.hostel`.
fn host_label(name: &str) -> String {
    let mut label = clean_hostname(name).to_ascii_lowercase();
    label.truncate(MAX_LABEL);
    label.truncate(label.trim_end_matches(['-', '.']).len());
    label
}

/// Returns what stands before the domain in the name of each distribution. One that is not in it gets no name: another one
/// has the same, or it belongs to the house.
pub fn labels<'a>(names: impl IntoIterator<Item = &'a DistroName>) -> BTreeMap<DistroName, String> {
    let mut names: Vec<_> = names
        .into_iter()
        .map(|name| (name, host_label(name.as_str())))
        .collect();
    // Those whose name needs no cleaning go first: nobody takes a name from its rightful owner.
    names.sort_by_key(|(name, label)| (!name.as_str().eq_ignore_ascii_case(label), *name));
    let mut taken: HashSet<String> = HOUSE.map(str::to_owned).into();
    names
        .into_iter()
        .filter(|(_, label)| taken.insert(label.clone()))
        .map(|(name, label)| (name.clone(), label))
        .collect()
}

/// What the house says to a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// These; none means that the name is there and has nothing of this kind.
    Records(Vec<Data>),
    /// There is no such name.
    Nothing,
}

/// The names, ready to be asked for.
#[derive(Debug, Default)]
pub(crate) struct House {
    domain: String,
    forward: HashMap<String, Vec<IpAddr>>,
    /// What longer names end with: these exist and have no records (RFC 8020).
    between: HashSet<String>,
    reverse: HashMap<IpAddr, String>,
}

impl House {
    /// Also returns the distributions that got no name, since another one has the same.
    pub(crate) fn new(domain: &str, names: &Names) -> (Self, Vec<DistroName>) {
        let mut house = Self {
            domain: domain.to_ascii_lowercase(),
            ..Self::default()
        };
        for (label, addresses) in HOUSE.iter().zip([&names.host, &names.vm]) {
            house.add(label, addresses);
        }
        let labels = labels(names.distros.keys());
        for (name, label) in &labels {
            house.add(label, &names.distros[name]);
        }
        let nameless = names.distros.keys().filter(|n| !labels.contains_key(*n));
        (house, nameless.cloned().collect())
    }

    fn add(&mut self, label: &str, addresses: &[IpAddr]) {
        let name = format!("{label}.{}", self.domain);
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            self.between.insert(parent.to_owned());
            rest = parent;
        }
        for address in addresses {
            // The first one that has it: the host and the VM before a distribution that shares the VM's.
            self.reverse.entry(*address).or_insert(name.clone());
        }
        self.forward.insert(name, addresses.to_vec());
    }

    /// Answers when the name is one of the house; `name` is in lower case.
    pub(crate) fn ask(&self, name: &str, kind: u16) -> Option<Found> {
        if let Some(address) = reverse_name(name) {
            let owner = self.reverse.get(&address)?;
            let records = if kind == PTR {
                vec![Data::Name(owner.clone())]
            } else {
                Vec::new()
            };
            return Some(Found::Records(records));
        }
        let below = name.strip_suffix(self.domain.as_str())?;
        if !(below.is_empty() || below.ends_with('.')) {
            return None;
        }
        match self.forward.get(name) {
            Some(addresses) => Some(Found::Records(of_kind(addresses, kind))),
            None if below.is_empty() || self.between.contains(name) => {
                Some(Found::Records(Vec::new()))
            }
            None => Some(Found::Nothing),
        }
    }
}

/// Returns the addresses of the asked kind as records.
pub(crate) fn of_kind(addresses: &[IpAddr], kind: u16) -> Vec<Data> {
    addresses
        .iter()
        .filter(|address| kind == if address.is_ipv4() { A } else { AAAA })
        .map(|address| Data::Address(*address))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MX: u16 = 15;

    fn house(distros: &[(&str, &str)]) -> (House, Vec<String>) {
        let names = Names {
            host: vec!["172.19.128.1".parse().unwrap()],
            vm: vec!["172.19.132.144".parse().unwrap()],
            distros: distros
                .iter()
                .map(|(name, address)| {
                    let addresses = address.split_whitespace().map(|a| a.parse().unwrap());
                    (DistroName::parse(name).unwrap(), addresses.collect())
                })
                .collect(),
        };
        let (house, left_out) = House::new("hostel", &names);
        (house, left_out.iter().map(ToString::to_string).collect())
    }

    fn answer(house: &House, name: &str, kind: u16) -> String {
        match house.ask(name, kind) {
            None => "elsewhere".to_owned(),
            Some(Found::Nothing) => "no such name".to_owned(),
            Some(Found::Records(records)) => records
                .into_iter()
                .map(|record| match record {
                    Data::Address(address) => address.to_string(),
                    Data::Name(name) => name,
                })
                .collect::<Vec<_>>()
                .join(" "),
        }
    }

    /// BOOT-30, in one label of a name.
    #[test]
    fn distributions_get_names_that_dns_can_hold() {
        for (name, want) in [
            ("Debian", "debian"),
            ("Ubuntu-24.04", "ubuntu-24.04"),
            ("my_box", "mybox"),
            ("a.b.c", "a.bc"),
            ("___", "localhost"),
            ("x-", "x"),
        ] {
            assert_eq!(host_label(name), want);
        }
        assert_eq!(host_label(&"x".repeat(64)).len(), 63);
    }

    #[test]
    fn everything_below_the_domain_is_answered_here() {
        let (house, _) = house(&[
            ("Debian", "172.19.132.144"),
            ("Ubuntu-24.04", "172.19.133.7 fd00::7"),
        ]);
        for (name, kind, want) in [
            ("host.hostel", A, "172.19.128.1"),
            ("vm.hostel", A, "172.19.132.144"),
            ("debian.hostel", A, "172.19.132.144"),
            ("ubuntu-24.04.hostel", A, "172.19.133.7"),
            ("ubuntu-24.04.hostel", AAAA, "fd00::7"),
            ("debian.hostel", AAAA, ""),
            ("debian.hostel", MX, ""),
            ("hostel", A, ""),
            // There is a name below it.
            ("04.hostel", A, ""),
            ("05.hostel", A, "no such name"),
            ("www.debian.hostel", A, "no such name"),
            ("hostel.example", A, "elsewhere"),
            ("myhostel", A, "elsewhere"),
            ("", A, "elsewhere"),
            ("1.128.19.172.in-addr.arpa", PTR, "host.hostel"),
            // The first who has it.
            ("144.132.19.172.in-addr.arpa", PTR, "vm.hostel"),
            ("7.133.19.172.in-addr.arpa", PTR, "ubuntu-24.04.hostel"),
            ("7.133.19.172.in-addr.arpa", MX, ""),
            ("8.133.19.172.in-addr.arpa", PTR, "elsewhere"),
        ] {
            assert_eq!(answer(&house, name, kind), want, "{name} {kind}");
        }
    }

    #[test]
    fn nobody_takes_a_name_that_belongs_to_another() {
        let (house, left_out) = house(&[
            ("Host", "10.0.0.1"),
            ("my_box", "10.0.0.2"),
            ("mybox", "10.0.0.3"),
            ("a_b", "10.0.0.4"),
            ("a__b", "10.0.0.5"),
        ]);
        assert_eq!(left_out, ["Host", "a_b", "my_box"]);
        assert_eq!(answer(&house, "host.hostel", A), "172.19.128.1");
        assert_eq!(answer(&house, "mybox.hostel", A), "10.0.0.3");
        assert_eq!(answer(&house, "ab.hostel", A), "10.0.0.5");
    }
}
