//! Both ends of a connection whose speed is measured, as programs of their own: they run on the host, in a namespace, or in
//! a guest, and every path is measured with the same two.

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::run::{DEADLINE, Running, host, until};

/// The first argument that makes a benchmark one of the ends.
pub const ROLE: &str = "__peer";
/// The kit's directory, where it is unpacked.
pub const PLACE: &str = "/opt/peer";

/// Above the first port of a server: sends without end, or takes all and says how much it was.
const BULK: u16 = 1;
/// Does what it is told, line by line.
const CONTROL: u16 = 3;
/// Answer one byte with one byte; one port for each client.
const ECHO: [u16; 4] = [11, 12, 13, 14];
/// All ports of a server, above its first.
pub const PORTS: [u16; 6] = [BULK, CONTROL, ECHO[0], ECHO[1], ECHO[2], ECHO[3]];

/// The longest that anyone waits for the other end.
const PATIENCE: Duration = Duration::from_secs(30);
/// The windows of a connection grow first.
const WARM: Duration = Duration::from_millis(500);
const CHUNK: usize = 128 * 1024;

/// Is one of the ends, when the program's arguments say so.
#[expect(clippy::print_stdout, reason = "its answer is its output")]
pub fn play() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [ROLE, "serve", address, first] => serve(address.parse()?, first.parse()?)?,
        [ROLE, "relay", address, first, to, to_first] => relay(
            (address.parse()?, first.parse()?),
            (to.parse()?, to_first.parse()?),
        )?,
        [ROLE, verb, address, first, argument] => {
            let server = Server {
                address: address.parse()?,
                first: first.parse()?,
            };
            match verb {
                "download" => println!("{}", server.download(argument.parse()?)?),
                "upload" => println!("{}", server.upload(argument.parse()?)?),
                "connections" => println!("{}", server.connections(argument.parse()?)?),
                "tell" => println!("{}", server.control()?.tell(argument)?),
                _ => bail!("no such end: {verb}"),
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// The programs that a guest needs to be an end, whatever else it has: this program and its libraries.
pub struct Kit(tempfile::TempDir);

impl Kit {
    /// Collects them.
    pub fn new() -> Result<Self> {
        let kit = Self(tempfile::tempdir()?);
        let own = std::env::current_exe()?;
        fs_err::copy(&own, kit.0.path().join("peer"))?;
        for word in host("ldd", &[&own])?.ok().split_whitespace() {
            if !word.starts_with('/') {
                continue;
            }
            let file = PathBuf::from(word);
            let name = file.file_name().context("ldd names files")?;
            let loader = name.to_string_lossy().starts_with("ld-linux");
            let name = if loader { OsStr::new("loader") } else { name };
            fs_err::copy(&file, kit.0.path().join(name))?;
        }
        Ok(kit)
    }

    /// Returns names and contents.
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        for entry in fs_err::read_dir(self.0.path())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, fs_err::read(entry.path())?));
        }
        Ok(files)
    }

    /// Returns a tar archive of them.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let dir = self.0.path().as_os_str().to_owned();
        let args = [OsString::from("-C"), dir, "-c".into(), ".".into()];
        let output = host("tar", &args)?;
        anyhow::ensure!(output.status.success(), "tar: {}", output.stderr);
        Ok(output.stdout)
    }

    /// Returns the command line that plays a role where the kit is unpacked.
    pub fn line(role: &str) -> String {
        format!("{PLACE}/loader --library-path {PLACE} {PLACE}/peer {ROLE} {role}")
    }
}

/// Plays a role in a process of its own, started by way of other programs (`nsenter`), until the end; returns what it said.
pub fn ask(by: &[String], role: &str) -> Result<String> {
    let output = spawn(by, role)?.wait(DEADLINE)?;
    anyhow::ensure!(output.status.success(), "{role}: {}", output.stderr);
    Ok(output.text())
}

/// Starts a role in a process of its own, by way of other programs.
pub fn spawn(by: &[String], role: &str) -> Result<Running> {
    let own = std::env::current_exe()?.display().to_string();
    let words: Vec<&str> = by
        .iter()
        .map(String::as_str)
        .chain([own.as_str(), ROLE])
        .chain(role.split(' '))
        .collect();
    Running::start(Command::new(words[0]).args(&words[1..]), None)
}

/// Waits until a server answers.
pub fn wait_for(by: &[String], address: IpAddr, first: u16) -> Result<()> {
    until("the other end answers", DEADLINE, || {
        ask(by, &format!("tell {address} {first} ping")).ok()
    })
    .map(drop)
}

/// Where a server is.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Its address.
    pub address: IpAddr,
    /// Its first port.
    pub first: u16,
}

impl Server {
    fn connect(self, port: u16) -> io::Result<TcpStream> {
        let address = SocketAddr::new(self.address, self.first + port);
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        bounded(stream)
    }

    /// Says how many bytes arrive here in a second.
    fn download(self, seconds: f64) -> io::Result<f64> {
        let mut stream = self.connect(BULK)?;
        stream.write_all(b"D")?;
        let mut buffer = vec![0; CHUNK];
        let mut start = Instant::now();
        let mut warm = false;
        let mut bytes = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => bytes += n,
            }
            let passed = start.elapsed();
            if !warm && passed > WARM {
                (warm, bytes, start) = (true, 0, Instant::now());
            } else if warm && passed.as_secs_f64() > seconds {
                return Ok(bytes as f64 / passed.as_secs_f64());
            }
        }
    }

    /// Says how many bytes arrive there in a second, counted there.
    fn upload(self, seconds: f64) -> io::Result<f64> {
        let mut stream = self.connect(BULK)?;
        stream.write_all(b"U")?;
        let buffer = vec![7; CHUNK];
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < seconds {
            stream.write_all(&buffer)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        Ok(u64::from_be_bytes(count) as f64 / start.elapsed().as_secs_f64())
    }

    /// Says how many connections can be made, used for one byte each way, and closed in a second.
    fn connections(self, seconds: f64) -> io::Result<f64> {
        let start = Instant::now();
        let clients = ECHO.map(|port| {
            thread::spawn(move || {
                let mut done = 0_u64;
                while start.elapsed().as_secs_f64() < seconds {
                    let mut stream = self.connect(port)?;
                    stream.set_nodelay(true)?;
                    stream.write_all(&[1])?;
                    stream.read_exact(&mut [0])?;
                    stream.shutdown(Shutdown::Write)?;
                    while stream.read(&mut [0; 64])? > 0 {}
                    done += 1;
                }
                Ok::<_, io::Error>(done)
            })
        });
        let mut done = 0;
        for client in clients {
            done += client
                .join()
                .map_err(|_| io::Error::other("a client panicked"))??;
        }
        Ok(done as f64 / start.elapsed().as_secs_f64())
    }

    /// Opens a connection by which the server is told what to do.
    pub fn control(self) -> io::Result<Control> {
        let stream = self.connect(CONTROL)?;
        stream.set_nodelay(true)?;
        Ok(Control(BufReader::new(stream)))
    }
}

/// A connection by which a server is told what to do.
pub struct Control(BufReader<TcpStream>);

impl Control {
    /// Sends one order: `ping`, `listen,PORT,COUNT,ADDRESS`, `close,PORT,COUNT`, `download,ADDRESS,FIRST,SECONDS`.
    pub fn send(&mut self, order: &str) -> io::Result<()> {
        self.0.get_mut().write_all(format!("{order}\n").as_bytes())
    }

    /// Waits for the answer to the oldest order that has none.
    pub fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.trim_end();
        match line.strip_prefix("ok ") {
            Some(answer) => Ok(answer.to_owned()),
            None => Err(io::Error::other(format!("the other end says `{line}`"))),
        }
    }

    /// Sends one order and waits for the answer.
    pub fn tell(&mut self, order: &str) -> io::Result<String> {
        self.send(order)?;
        self.answer()
    }
}

fn bounded(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Serves until the process is killed.
fn serve(address: IpAddr, first: u16) -> io::Result<()> {
    // As many sockets as the one who starts us may give.
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limits.maximum,
            maximum: limits.maximum,
        },
    )?;
    let listen = |port| TcpListener::bind((address, first + port));
    for port in ECHO {
        let listener = listen(port)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = echo(stream);
            }
        });
    }
    for (port, answer) in [
        (BULK, bulk as fn(TcpStream) -> io::Result<()>),
        (CONTROL, obey),
    ] {
        let listener = listen(port)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer(stream));
            }
        });
    }
    loop {
        thread::park();
    }
}

fn echo(stream: TcpStream) -> io::Result<()> {
    let mut stream = bounded(stream)?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    while stream.read(&mut byte)? > 0 {}
    Ok(())
}

fn bulk(stream: TcpStream) -> io::Result<()> {
    let mut stream = bounded(stream)?;
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    let mut buffer = vec![7; CHUNK];
    if mode == *b"D" {
        loop {
            stream.write_all(&buffer)?;
        }
    }
    let mut count = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&count.to_be_bytes()),
            n => count += n as u64,
        }
    }
}

fn obey(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut open: Vec<TcpListener> = Vec::new();
    for line in BufReader::new(stream).lines() {
        let answer = match order(&line?, &mut open) {
            Ok(answer) => format!("ok {answer}\n"),
            Err(error) => format!("error {error:#}\n"),
        };
        out.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn order(line: &str, open: &mut Vec<TcpListener>) -> Result<String> {
    match line.split(',').collect::<Vec<_>>()[..] {
        ["ping"] => {}
        ["listen", port, count, address] => {
            let (port, address): (u16, IpAddr) = (port.parse()?, address.parse()?);
            for n in 0..count.parse()? {
                open.push(TcpListener::bind((address, port + n))?);
            }
        }
        ["close", port, count] => {
            let (port, count): (u16, u16) = (port.parse()?, count.parse()?);
            open.retain(|listener| {
                !listener
                    .local_addr()
                    .is_ok_and(|a| (port..port + count).contains(&a.port()))
            });
        }
        ["download", address, first, seconds] => {
            let server = Server {
                address: address.parse()?,
                first: first.parse()?,
            };
            return Ok(server.download(seconds.parse()?)?.to_string());
        }
        _ => bail!("unknown order: {line}"),
    }
    Ok("done".to_owned())
}

/// Carries every connection to another server in user space, a thread for each connection: one of the two relays of the
/// reference's scheme. Runs until the process is killed.
fn relay(at: (IpAddr, u16), to: (IpAddr, u16)) -> io::Result<()> {
    for port in PORTS {
        let listener = TcpListener::bind((at.0, at.1 + port))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let other = TcpStream::connect((to.0, to.1 + port))?;
                    carry(&stream, &other)
                });
            }
        });
    }
    loop {
        thread::park();
    }
}

/// Waits for bytes on either side and moves them to the other, until both have ended.
fn carry(one: &TcpStream, two: &TcpStream) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    one.set_nodelay(true)?;
    two.set_nodelay(true)?;
    let mut buffer = vec![0; CHUNK];
    let mut ended = [false; 2];
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    while ended != [true; 2] {
        let sides = [(one, two), (two, one)];
        let ready: Vec<bool> = {
            let events = ended.map(|e| if e { PollFlags::empty() } else { PollFlags::IN });
            let mut set = [PollFd::new(one, events[0]), PollFd::new(two, events[1])];
            if poll(&mut set, Some(&patience))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            set.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        for (n, (mut from, mut to)) in sides.into_iter().enumerate() {
            if ended[n] || !ready[n] {
                continue;
            }
            match from.read(&mut buffer)? {
                0 => {
                    to.shutdown(Shutdown::Write)?;
                    ended[n] = true;
                }
                count => to.write_all(&buffer[..count])?,
            }
        }
    }
    Ok(())
}
