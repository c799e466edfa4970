//! The host's `/etc/hosts`: names and addresses, packed, since lists against advertisements have half a million lines.

use std::{collections::HashMap, net::IpAddr};

use crate::{
    house::of_kind,
    message::{A, AAAA, Data, PTR, is_name, reverse_name},
};

/// The largest file that is read, in bytes; the limit of a guest's patience, not of the format.
pub(crate) const MAX_FILE: u64 = 32 << 20;
/// The most addresses that one name gets.
const MAX_ADDRESSES: usize = 64;

/// A place in the text.
#[derive(Clone, Copy, Debug)]
struct Name {
    start: u32,
    length: u8,
}

/// The entries of the file.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    /// All names behind each other, in lower case.
    text: String,
    /// Each name and the number of its address, sorted by name and then as in the file.
    names: Vec<(Name, u32)>,
    addresses: Vec<IpAddr>,
    /// The number of each address and its first name.
    reverse: HashMap<IpAddr, (u32, Name)>,
}

impl Hosts {
    pub(crate) fn parse(file: &[u8]) -> Self {
        let mut hosts = Self::default();
        let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
        for line in file.split(|b| *b == b'\n') {
            let line = line.split(|b| *b == b'#').next().unwrap_or_default();
            let Ok(line) = str::from_utf8(line) else {
                continue;
            };
            let mut fields = line.split_ascii_whitespace();
            let Some(address) = fields.next().and_then(|field| field.parse().ok()) else {
                continue;
            };
            for name in fields {
                hosts.add(address, name.strip_suffix('.').unwrap_or(name));
            }
        }
        hosts.text.shrink_to_fit();
        hosts.names.shrink_to_fit();
        let text = &hosts.text;
        // Stable: of one name the addresses stay in the order of the file.
        hosts.names.sort_by_key(|(name, _)| slice(text, *name));
        hosts
    }

    fn add(&mut self, address: IpAddr, name: &str) {
        let Ok(start) = u32::try_from(self.text.len()) else {
            return;
        };
        if !is_name(name) {
            return;
        }
        self.text.push_str(&name.to_ascii_lowercase());
        let name = Name {
            start,
            length: name.len() as u8,
        };
        let next = self.addresses.len() as u32;
        let (number, _) = *self.reverse.entry(address).or_insert((next, name));
        if number == next {
            self.addresses.push(address);
        }
        self.names.push((name, number));
    }

    /// Answers a question for an address or a name when the file knows it; `name` is in lower case. Whoever has one
    /// kind of address here has no other kind elsewhere, as with the host's own resolver.
    pub(crate) fn ask(&self, name: &str, kind: u16) -> Option<Vec<Data>> {
        match kind {
            A | AAAA => {
                let addresses = self.addresses_of(name);
                (!addresses.is_empty()).then(|| of_kind(&addresses, kind))
            }
            PTR => {
                let (_, name) = self.reverse.get(&reverse_name(name)?)?;
                Some(vec![Data::Name(slice(&self.text, *name).to_owned())])
            }
            _ => None,
        }
    }

    fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        let first = self
            .names
            .partition_point(|(other, _)| slice(&self.text, *other) < name);
        let mut found: Vec<IpAddr> = Vec::new();
        for (_, number) in self.names[first..]
            .iter()
            .take_while(|(other, _)| slice(&self.text, *other) == name)
            .take(MAX_ADDRESSES)
        {
            let address = self.addresses[*number as usize];
            if !found.contains(&address) {
                found.push(address);
            }
        }
        found
    }
}

fn slice(text: &str, name: Name) -> &str {
    &text[name.start as usize..][..usize::from(name.length)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_libc_reads_it() {
        let hosts = Hosts::parse(
            b"\xef\xbb\xbf# a comment\n10.0.0.1\tOne one.example.  uno # more\r\nfd00::1 one\n10.0.0.2 one two\n10.0.0.1 one\n\
              nonsense x\n10.0.0.9\n\xff\xfe bad\n10.0.0.3 a..b .c d\xc3\xa9 good\nfe80::1%eth0 zone\n",
        );
        let addresses = |name: &str, kind| {
            hosts.ask(name, kind).map(|records| {
                records
                    .into_iter()
                    .map(|record| match record {
                        Data::Address(address) => address.to_string(),
                        Data::Name(name) => name,
                    })
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        for (name, kind, want) in [
            ("one", A, Some("10.0.0.1 10.0.0.2")),
            ("one", AAAA, Some("fd00::1")),
            ("one.example", A, Some("10.0.0.1")),
            // There, but not of this kind.
            ("two", AAAA, Some("")),
            ("two", A, Some("10.0.0.2")),
            ("good", A, Some("10.0.0.3")),
            ("1.0.0.10.in-addr.arpa", PTR, Some("one")),
            ("2.0.0.10.in-addr.arpa", PTR, Some("one")),
            ("9.0.0.10.in-addr.arpa", PTR, None),
            ("one", 15, None),
            ("x", A, None),
            ("zone", AAAA, None),
            ("", A, None),
            ("on", A, None),
            ("onet", A, None),
        ] {
            assert_eq!(addresses(name, kind).as_deref(), want, "{name} {kind}");
        }
        let reverse = format!("1.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(addresses(&reverse, PTR).as_deref(), Some("one"));
    }

    #[test]
    fn a_long_list_against_advertisements_is_small_and_quick() {
        let lines: Vec<String> = (0..100_000)
            .map(|n| format!("0.0.0.0 ads{n}.example\n"))
            .collect();
        let file = lines.concat();
        let hosts = Hosts::parse(file.as_bytes());
        assert_eq!(hosts.addresses.len(), 1);
        assert_eq!(
            hosts.ask("ads99999.example", A),
            Some(vec![Data::Address([0, 0, 0, 0].into())])
        );
        assert_eq!(hosts.ask("ads99999.example", AAAA), Some(vec![]));
        assert_eq!(hosts.ask("ads100000.example", A), None);
    }

    #[test]
    fn one_name_with_endless_addresses_is_cut() {
        let lines: Vec<String> = (0..500)
            .map(|n| format!("10.0.{}.{} x\n", n / 250, n % 250))
            .collect();
        let file = lines.concat();
        let hosts = Hosts::parse(file.as_bytes());
        assert_eq!(hosts.ask("x", A).unwrap().len(), MAX_ADDRESSES);
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read_without_a_panic(file in proptest::collection::vec(proptest::num::u8::ANY, 0..300), name in "[a-z.]{0,8}") {
            let hosts = Hosts::parse(&file);
            let _ = hosts.ask(&name, A);
        }
    }
}
