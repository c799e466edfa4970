//! `hostel logs`.

use std::{
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1;

use crate::{
    args::{LogKind, LogsArgs},
    connect,
    surroundings::Context,
    trouble::Trouble,
};

/// The most that is read from the end of a log file, in bytes.
const MAX_TAIL: u64 = 16 << 20;

/// Prints a log through the daemon; without one, from the file that it left.
pub(super) async fn logs(context: &Context, args: LogsArgs) -> Result<(), Trouble> {
    let daemon = connect::find(
        &context.paths,
        connect::Start::Never,
        connect::Age::Compatible,
    )
    .await;
    let mut daemon = match daemon {
        Ok(Some(daemon)) => daemon,
        Ok(None) if args.follow => {
            return Err(Failure::new(
                ErrorCode::Daemon,
                "no daemon runs whose log could be followed",
            )
            .hint("leave out `--follow` to see the log of the last one")
            .into());
        }
        // A daemon that does not answer is when its log is needed most.
        Ok(None) | Err(_) => return from_file(context, &args),
    };
    let request = v1::LogsRequest {
        which: args.which.as_str().into(),
        follow: args.follow,
        tail_lines: args.lines.unwrap_or(0),
    };
    let mut chunks = daemon.api.logs(request).await?.into_inner();
    while let Some(chunk) = chunks.message().await? {
        context.printer.bytes(&chunk.data)?;
    }
    Ok(())
}

fn from_file(context: &Context, args: &LogsArgs) -> Result<(), Trouble> {
    let path = match args.which {
        LogKind::Console => context.paths.console_log(),
        LogKind::Daemon => context.paths.daemon_log(),
    };
    if !path.exists() {
        context
            .printer
            .say(&format!("there is no log yet at `{}`", path.display()));
        return Ok(());
    }
    let text = tail(&path, args.lines)
        .map_err(|e| Trouble::file(format!("cannot read the log `{}`", path.display()), &e))?;
    context.printer.bytes(&text)
}

/// Returns the last lines of a file.
fn tail(path: &Path, lines: Option<u32>) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::OpenOptions::new().read(true).open(path)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(MAX_TAIL)))?;
    let mut text = Vec::new();
    file.take(MAX_TAIL).read_to_end(&mut text)?;
    if let Some(lines) = lines {
        let body = text.strip_suffix(b"\n").unwrap_or(&text);
        let newlines = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
        let start = newlines
            .map(|(i, _)| i + 1)
            .nth(lines as usize - 1)
            .unwrap_or(0);
        text.drain(..start);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for (text, lines, want) in [
            ("a\nb\nc\n", Some(2), "b\nc\n"),
            ("a\nb\nc", Some(2), "b\nc"),
            ("a\nb\n", Some(9), "a\nb\n"),
            ("a\n\n", Some(1), "\n"),
            ("", Some(1), ""),
            ("a\nb\n", None, "a\nb\n"),
        ] {
            fs_err::write(&path, text).unwrap();
            assert_eq!(
                tail(&path, lines).unwrap(),
                want.as_bytes(),
                "{text:?} {lines:?}"
            );
        }
    }
}
