//! Fetching a package by URL, with a digest that is part of this program.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::SourceError;
use crate::deb::WORTH_TELLING;
use crate::store::{Progress, Step, hex};

/// A package whose content is known.
struct Pin {
    arch: &'static str,
    /// Below the mirror.
    path: &'static str,
    size: u64,
    sha256: &'static str,
}

/// The newest kernel known when this was written. The archive drops a version some time after the next one: the error
/// then says what else can be done.
const PINNED: [Pin; 1] = [Pin {
    arch: "x86_64",
    path: "debian-security/pool/updates/main/l/linux-signed-amd64/linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb",
    size: 26_713_492,
    sha256: "e7d02b943971edcb8790e256c02cfab3bca6c3d37c1bf25392a57c71300615ee",
}];

/// How long the server may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Downloads the pinned package for this machine into a directory; returns its path and a text that names it.
pub(super) fn pinned(
    mirror: &str,
    dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Vec<PathBuf>, String), SourceError> {
    let pin = PINNED
        .iter()
        .find(|pin| pin.arch == std::env::consts::ARCH)
        .ok_or(SourceError::NothingPinned(std::env::consts::ARCH))?;
    let (path, url) = download(mirror, pin, dir, progress)?;
    Ok((vec![path], url))
}

fn download(
    mirror: &str,
    pin: &Pin,
    dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(PathBuf, String), SourceError> {
    let url = format!("{}/{}", mirror.trim_end_matches('/'), pin.path);
    let failed = |source| SourceError::Fetch {
        url: url.clone(),
        source,
    };
    // Another part of the process may have chosen already; either choice serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder()
        .connect_timeout(SILENCE)
        .timeout(None)
        .user_agent(concat!("hostel/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(failed)?;
    let mut reply = client
        .get(&url)
        .send()
        .and_then(reqwest::blocking::Response::error_for_status)
        .map_err(failed)?;

    let path = dir.join(pin.path.rsplit('/').next().unwrap_or(pin.path));
    let mut file = fs_err::File::create(&path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let (mut done, mut told) = (0, 0);
    loop {
        let n = reply.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        done += n as u64;
        if done > pin.size {
            return Err(SourceError::BadDigest {
                url,
                found: format!("more than {} bytes", pin.size),
                expected: format!("{} bytes", pin.size),
            });
        }
        digest.update(&buffer[..n]);
        file.write_all(&buffer[..n])?;
        if done - told >= WORTH_TELLING || done == pin.size {
            told = done;
            progress(Progress {
                step: Step::Fetch,
                done,
                total: Some(pin.size),
            });
        }
    }
    let found = hex(&digest.finalize());
    if found == pin.sha256 {
        Ok((path, url))
    } else {
        Err(SourceError::BadDigest {
            url,
            found: format!("SHA-256 {found}"),
            expected: pin.sha256.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead as _, net::TcpListener};

    use super::*;

    /// Serves one request on the loopback interface and returns the address to ask.
    fn serve(status: &'static str, body: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut lines = std::io::BufReader::new(peer.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|l| !l.unwrap().is_empty()) {}
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            peer.write_all(head.as_bytes()).unwrap();
            peer.write_all(body).unwrap();
        });
        address
    }

    fn try_download(mirror: &str, size: u64) -> Result<PathBuf, SourceError> {
        let dir = tempfile::tempdir().unwrap();
        let pin = Pin {
            arch: "any",
            path: "pool/x.deb",
            size,
            sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        };
        download(mirror, &pin, dir.path(), &mut |_| {}).map(|(path, url)| {
            assert!(
                url.ends_with("/pool/x.deb") && !url.contains("//pool"),
                "{url}"
            );
            assert_eq!(fs_err::read(&path).unwrap(), b"hello");
            path
        })
    }

    #[test]
    fn only_what_is_pinned_is_taken() {
        assert!(try_download(&serve("200 OK", b"hello"), 5).is_ok());
        assert!(matches!(
            try_download(&serve("200 OK", b"hullo"), 5),
            Err(SourceError::BadDigest { .. })
        ));
        assert!(matches!(
            try_download(&serve("200 OK", b"hell"), 5),
            Err(SourceError::BadDigest { .. })
        ));
        assert!(matches!(
            try_download(&serve("200 OK", b"hello, longer"), 5),
            Err(SourceError::BadDigest { .. })
        ));
        assert!(matches!(
            try_download(&serve("404 Not Found", b""), 5),
            Err(SourceError::Fetch { .. })
        ));
    }
}
