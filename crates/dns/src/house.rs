//! The names of the house: `host.hostel`, `vm.hostel`, and one for each distribution.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
};

use hostel_model::DistroName;
use hostel_wslconf::clean_hostname;

use crate::message::{A, AAAA, Data, PTR, reverse_name};

/// The longest label that DNS knows.
const MAX_LABEL: usize = 63;

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
pub fn host_label(name: &str) -> String {
    let mut label = clean_hostname(name).to_ascii_lowercase();
    label.truncate(MAX_LABEL);
    label.truncate(label.trim_end_matches(['-', '.']).len());
    label
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
        house.add("host", &names.host);
        house.add("vm", &names.vm);
        // Those whose name needs no cleaning go first: nobody takes a name from its rightful owner.
        let exact = |name: &DistroName| {
            name.as_str()
                .eq_ignore_ascii_case(&host_label(name.as_str()))
        };
        let (first, then): (Vec<_>, Vec<_>) = names.distros.iter().partition(|(n, _)| exact(n));
        let mut left_out = Vec::new();
        for (name, addresses) in first.into_iter().chain(then) {
            if !house.add(&host_label(name.as_str()), addresses) {
                left_out.push(name.clone());
            }
        }
        (house, left_out)
    }

    fn add(&mut self, label: &str, addresses: &[IpAddr]) -> bool {
        let name = format!("{label}.{}", self.domain);
        let Entry::Vacant(place) = self.forward.entry(name.clone()) else {
            return false;
        };
        place.insert(addresses.to_vec());
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            self.between.insert(parent.to_owned());
            rest = parent;
        }
        for address in addresses {
            // The first one that has it: the host and the VM before a distribution that shares the VM's.
            self.reverse.entry(*address).or_insert(name.clone());
        }
        true
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
