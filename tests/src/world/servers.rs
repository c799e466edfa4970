//! Small servers that answer so that a client can tell whether every byte arrived.

use std::{
    io::{self, BufRead as _, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::Result;
use sha2::{Digest, Sha256};

/// What the HTTP server answers to `/`.
pub const PAGE: &str = "this is the internet";

/// HTTP: `/` is [`PAGE`], `/bytes/N` are N bytes of [`pattern`], `/peer` is the address of the one who asks.
pub const HTTP: u16 = 80;
/// Reads a line with a number, then so many bytes, and answers `<count> <sha256>`.
pub const DIGEST: u16 = 9;
/// Sends back what it gets, by TCP and UDP.
pub const ECHO: u16 = 7;

/// The longest that a server waits for a silent client.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts all servers on one address; they live as long as the process.
///
/// Needs the right to bind ports below 1024, in the network namespace of the calling thread.
pub fn start(address: IpAddr) -> Result<()> {
    listen((address, HTTP).into(), http)?;
    listen((address, DIGEST).into(), digest)?;
    listen((address, ECHO).into(), echo)?;
    let socket = UdpSocket::bind((address, ECHO))?;
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    Ok(())
}

/// Serves connections to one address, each in a thread; lives as long as the process. Returns the bound address.
pub fn listen(
    address: SocketAddr,
    answer: fn(TcpStream) -> io::Result<()>,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let bound = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(PATIENCE));
                answer(stream)
            });
        }
    });
    Ok(bound)
}

/// Answers one HTTP request.
pub fn http(mut stream: TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < 8192 {
        match stream.read(&mut buffer)? {
            0 => break,
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.split(' ').nth(1).unwrap_or("/");
    let head = |length: u64| format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n");
    if let Some(count) = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
        stream.write_all(head(count).as_bytes())?;
        return io::copy(&mut pattern(count), &mut stream).map(drop);
    }
    let body = if path == "/peer" {
        stream.peer_addr()?.ip().to_string()
    } else {
        PAGE.to_owned()
    };
    write!(stream, "{}{body}", head(body.len() as u64))
}

/// Reads as much as is announced, then says what it was.
pub fn digest(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = io::BufReader::new(&stream);
    let mut announced = String::new();
    reader.read_line(&mut announced)?;
    let announced: u64 = announced.trim().parse().map_err(io::Error::other)?;
    let (count, sum) = sha256(reader.take(announced))?;
    writeln!(stream, "{count} {sum}")
}

/// Sends everything back.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut back = stream.try_clone()?;
    io::copy(&mut stream, &mut back).map(drop)
}

/// Returns `count` bytes that never repeat in the rhythm of any buffer.
pub fn pattern(count: u64) -> impl Read {
    let mut state = 0x9e37_79b9_u32;
    let bytes = std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    Pattern { bytes, left: count }
}

/// Returns the SHA-256 of [`pattern`], as `sha256sum` prints it.
pub fn pattern_sha256(count: u64) -> String {
    sha256(pattern(count)).expect("memory does not fail").1
}

/// Reads to the end; returns how many bytes there were, and their SHA-256 as `sha256sum` prints it.
pub fn sha256(mut from: impl Read) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut count = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok((count, hex(&hash.finalize()))),
            n => {
                hash.update(&buffer[..n]);
                count += n as u64;
            }
        }
    }
}

struct Pattern<I> {
    bytes: I,
    left: u64,
}

impl<I: Iterator<Item = u8>> Read for Pattern<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        for (place, byte) in buffer[..count].iter_mut().zip(&mut self.bytes) {
            *place = byte;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
