//! The made-up internet: a process in a network namespace of its own that answers HTTP, UDP echo and DNS.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{INTERNET, INTERNET_NAME};
use crate::run::until;

/// The first argument that makes a test program the internet.
pub const ROLE: &str = "__internet";

/// What the HTTP server answers.
pub const PAGE: &str = "this is the internet";

/// Starts the internet in a network namespace of its own; it ends when this process does. Returns its pid.
pub(super) fn start() -> Result<u32> {
    // Its standard input is a pipe that this process never writes to: end of file is the sign to leave.
    let child = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe()?)
        .arg(ROLE)
        .stdin(Stdio::piped())
        .spawn()
        .context("unshare --net")?;
    let pid = child.id();
    let own = fs_err::read_link("/proc/self/ns/net")?;
    until(
        "the internet has a namespace of its own",
        Duration::from_secs(10),
        || {
            fs_err::read_link(format!("/proc/{pid}/ns/net"))
                .ok()
                .filter(|ns| *ns != own)
        },
    )?;
    std::mem::forget(child);
    Ok(pid)
}

/// Waits until the servers answer.
pub(super) fn wait_ready() -> Result<()> {
    until("the internet answers", Duration::from_secs(10), || {
        TcpStream::connect((INTERNET, 80)).ok()
    })?;
    Ok(())
}

/// Is the internet, until standard input ends.
pub fn serve() -> Result<()> {
    // The address is given to the namespace after this process is there.
    let http = until("the address comes", Duration::from_secs(10), || {
        TcpListener::bind((INTERNET, 80)).ok()
    })?;
    let echo = UdpSocket::bind((INTERNET, 7))?;
    let dns = UdpSocket::bind((INTERNET, 53))?;
    thread::spawn(move || {
        for stream in http.incoming().flatten() {
            thread::spawn(move || answer_http(stream));
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..n], from);
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = dns.recv_from(&mut buffer) {
            if let Some(answer) = answer_dns(&buffer[..n]) {
                let _ = dns.send_to(&answer, from);
            }
        }
    });
    let _ = std::io::stdin().read(&mut [0; 1]);
    Ok(())
}

fn answer_http(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let _ = stream.read(&mut [0; 1024])?;
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{PAGE}",
        PAGE.len()
    )
}

/// Answers an A question for [`INTERNET_NAME`] with the internet's address, everything else with "no such name".
fn answer_dns(query: &[u8]) -> Option<Vec<u8>> {
    let question = query.get(12..)?;
    let mut name = Vec::new();
    let mut at = 0;
    while let Some(&len) = question.get(at).filter(|len| **len > 0) {
        name.extend_from_slice(question.get(at + 1..at + 1 + usize::from(len))?);
        name.push(b'.');
        at += 1 + usize::from(len);
    }
    let kind = question.get(at + 1..at + 3)?;
    let question = question.get(..at + 5)?;
    let known = name == format!("{INTERNET_NAME}.").as_bytes();
    let answers = u16::from(known && kind == [0, 1]);
    let mut out = query.get(..2)?.to_vec();
    out.extend_from_slice(&[0x81, if known { 0x80 } else { 0x83 }, 0, 1]);
    out.extend_from_slice(&answers.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(question);
    if answers == 1 {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend_from_slice(&INTERNET.parse::<Ipv4Addr>().ok()?.octets());
    }
    Some(out)
}
