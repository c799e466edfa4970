//! Choosing a backend: the best that really works, or exactly the one that was asked for.

use std::sync::Arc;

use super::{Backend, Kind, Opened, Verdict, Wanted, bridged, passt, slirp};

/// No backend could be opened.
#[derive(Debug, thiserror::Error)]
#[error("no network backend works here: {}", words(.verdicts))]
pub struct OpenError {
    /// Why not, one by one.
    pub verdicts: Vec<Verdict>,
}

fn words(verdicts: &[Verdict]) -> String {
    let one = |v: &Verdict| format!("{}: {}", v.kind, v.reason);
    verdicts.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Opens the network. Waits at most a few seconds for each backend; what does not work leaves nothing behind.
pub async fn open(wanted: &Wanted) -> Result<Opened, OpenError> {
    let mut verdicts = Vec::new();
    for kind in kinds(wanted) {
        match open_one(kind, wanted).await {
            Ok(backend) => {
                verdicts.push(Verdict {
                    kind,
                    usable: true,
                    reason: backend.reason().to_owned(),
                });
                return Ok(Opened { backend, verdicts });
            }
            Err(reason) => verdicts.push(Verdict {
                kind,
                usable: false,
                reason,
            }),
        }
    }
    Err(OpenError { verdicts })
}

/// Looks which backends could be opened, without changing anything.
pub async fn probe(wanted: &Wanted) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for kind in kinds(wanted) {
        let (usable, reason) = match probe_one(kind, wanted).await {
            Ok(reason) => (true, reason),
            Err(reason) => (false, reason),
        };
        verdicts.push(Verdict {
            kind,
            usable,
            reason,
        });
    }
    verdicts
}

fn kinds(wanted: &Wanted) -> Vec<Kind> {
    wanted
        .kind
        .map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind])
}

async fn probe_one(kind: Kind, wanted: &Wanted) -> Result<String, String> {
    match kind {
        Kind::Slirp => Ok(slirp::probe()),
        Kind::Passt => passt::probe(wanted).await,
        Kind::Root | Kind::Rootless => {
            let wanted = wanted.clone();
            tokio::task::spawn_blocking(move || bridged::probe(kind, &wanted))
                .await
                .map_err(|e| e.to_string())?
        }
    }
}

async fn open_one(kind: Kind, wanted: &Wanted) -> Result<Arc<dyn Backend>, String> {
    match kind {
        Kind::Slirp => Ok(Arc::new(slirp::open(wanted).await)),
        Kind::Passt => Ok(Arc::new(passt::open(wanted).await?)),
        Kind::Root | Kind::Rootless => Ok(Arc::new(bridged::open(kind, wanted).await?)),
    }
}
