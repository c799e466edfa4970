//! The DNS server of the made-up internet.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
};

use anyhow::Result;

use super::{INTERNET, INTERNET_NAME, INTERNET_V6, servers};

/// A name with a TXT record that is too large for any UDP answer.
pub const BIG_NAME: &str = "big.example.test";
/// How many bytes the TXT record of [`BIG_NAME`] has.
pub const BIG: usize = 6000;

const A: [u8; 2] = [0, 1];
const TXT: [u8; 2] = [0, 16];
const AAAA: [u8; 2] = [0, 28];

/// Starts the server on port 53 of one address, UDP and TCP; it lives as long as the process.
pub fn start(address: IpAddr) -> Result<()> {
    let socket = UdpSocket::bind((address, 53))?;
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..n], false) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    servers::listen(SocketAddr::from((address, 53)), tcp)?;
    Ok(())
}

fn tcp(mut stream: TcpStream) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let Some(answer) = answer(&query, true) else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

/// Answers A and AAAA for [`INTERNET_NAME`], TXT for [`BIG_NAME`], and everything else with "no such name".
fn answer(query: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let question = query.get(12..)?;
    let mut name = Vec::new();
    let mut at = 0;
    while let Some(&len) = question.get(at).filter(|len| **len > 0) {
        name.extend_from_slice(question.get(at + 1..at + 1 + usize::from(len))?);
        name.push(b'.');
        at += 1 + usize::from(len);
    }
    let kind: [u8; 2] = question.get(at + 1..at + 3)?.try_into().ok()?;
    let question = question.get(..at + 5)?;
    let name = String::from_utf8_lossy(&name).to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    let data = match (name, kind) {
        (INTERNET_NAME, A) => Some(INTERNET.parse::<Ipv4Addr>().ok()?.octets().to_vec()),
        (INTERNET_NAME, AAAA) => Some(INTERNET_V6.parse::<Ipv6Addr>().ok()?.octets().to_vec()),
        (BIG_NAME, TXT) => Some(
            vec![b'x'; BIG]
                .chunks(250)
                .flat_map(|c| std::iter::once(c.len() as u8).chain(c.iter().copied()))
                .collect(),
        ),
        _ => None,
    };
    let known = [INTERNET_NAME, BIG_NAME].contains(&name);
    let truncated = !tcp && data.as_ref().is_some_and(|d| d.len() > 400);
    let data = data.filter(|_| !truncated);
    let mut out = query.get(..2)?.to_vec();
    out.push(if truncated { 0x83 } else { 0x81 });
    out.push(if known { 0x80 } else { 0x83 });
    out.extend_from_slice(&[0, 1, 0, u8::from(data.is_some()), 0, 0, 0, 0]);
    out.extend_from_slice(question);
    if let Some(data) = data {
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind);
        out.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
        out.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&data);
    }
    Some(out)
}
