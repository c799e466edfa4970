//! The unpacked archive as a stream of blocks, and the data of one member as a reader.

use std::{
    cell::RefCell,
    io::{self, BufRead, Read},
    rc::Rc,
};

use crate::{
    Compression, Progress, ReadError,
    decode::RawState,
    errors::shown,
    header::{BLOCK, Block},
};

/// How many bytes pass between two reports.
const REPORT_EVERY: u64 = 1 << 20;

/// The unpacked archive.
pub(crate) struct Stream<'a> {
    pub(crate) input: Box<dyn BufRead + 'a>,
    pub(crate) compression: Compression,
    pub(crate) raw: Rc<RefCell<RawState>>,
    pub(crate) report: &'a mut dyn FnMut(Progress),
    /// Bytes of the unpacked archive read so far.
    pub(crate) position: u64,
    pub(crate) members: u64,
    /// The member being read, for errors.
    pub(crate) member: Option<Vec<u8>>,
    /// What went wrong while a receiver was reading a member's data: the receiver only sees an [`io::Error`].
    pub(crate) failure: Option<ReadError>,
    reported: u64,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(
        input: Box<dyn BufRead + 'a>,
        compression: Compression,
        raw: Rc<RefCell<RawState>>,
        report: &'a mut dyn FnMut(Progress),
    ) -> Self {
        Self {
            input,
            compression,
            raw,
            report,
            position: 0,
            members: 0,
            member: None,
            failure: None,
            reported: 0,
        }
    }

    /// Reads one block; `None` at the end of the input, an error when it ends inside the block.
    pub(crate) fn block(&mut self) -> Result<Option<Block>, ReadError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.truncated()),
                n => filled += n,
            }
        }
        Ok(Some(block))
    }

    /// Reads one block that must be there.
    pub(crate) fn block_of_member(&mut self) -> Result<Block, ReadError> {
        self.block()?.ok_or_else(|| self.truncated())
    }

    /// Reads some bytes; 0 at the end of the input.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize, ReadError> {
        match self.input.read(out) {
            Ok(n) => {
                self.advance(n as u64);
                Ok(n)
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Passes over `count` bytes that must be there.
    pub(crate) fn skip(&mut self, mut count: u64) -> Result<(), ReadError> {
        while count > 0 {
            let ready = match self.input.fill_buf() {
                Ok(ready) => ready.len(),
                Err(error) => return Err(self.explain(error)),
            };
            if ready == 0 {
                return Err(self.truncated());
            }
            let n = count.min(ready as u64);
            self.input.consume(n as usize);
            self.advance(n);
            count -= n;
        }
        Ok(())
    }

    /// Reads to the end of the input, or `limit` bytes: the writer of a pipe is not cut off, checksums get checked.
    pub(crate) fn drain(&mut self, limit: u64) -> Result<(), ReadError> {
        let end = self.position.saturating_add(limit);
        while self.position < end {
            let ready = match self.input.fill_buf() {
                Ok(ready) => ready.len(),
                Err(error) => return Err(self.explain(error)),
            };
            if ready == 0 {
                break;
            }
            self.input.consume(ready);
            self.advance(ready as u64);
        }
        Ok(())
    }

    fn advance(&mut self, n: u64) {
        self.position += n;
        if self.position - self.reported >= REPORT_EVERY {
            self.tell();
        }
    }

    /// Reports how far the work is.
    pub(crate) fn tell(&mut self) {
        self.reported = self.position;
        let taken = self.raw.borrow().taken;
        (self.report)(Progress {
            taken,
            unpacked: self.position,
            members: self.members,
        });
    }

    pub(crate) fn truncated(&self) -> ReadError {
        ReadError::Truncated {
            member: self.member.as_deref().map(shown),
        }
    }

    /// Tells apart the input's own errors, early ends and damaged compressed data.
    fn explain(&mut self, error: io::Error) -> ReadError {
        if let Some(failure) = self.raw.borrow_mut().failure.take() {
            return ReadError::Input(failure);
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.truncated();
        }
        ReadError::Compression {
            format: self.compression,
            member: self.member.as_deref().map(shown),
            source: error,
        }
    }
}

/// The data of one member, without its padding.
pub(crate) struct MemberData<'s, 'a> {
    pub(crate) stream: &'s mut Stream<'a>,
    pub(crate) left: u64,
}

impl Read for MemberData<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(out.len());
        if want == 0 {
            return Ok(0);
        }
        let failure = match self.stream.read(&mut out[..want]) {
            Ok(0) => self.stream.truncated(),
            Ok(n) => {
                self.left -= n as u64;
                return Ok(n);
            }
            Err(failure) => failure,
        };
        // Not of kind `UnexpectedEof` or `Interrupted`: no receiver may take it for an end or try again.
        let told = io::Error::other(failure.to_string());
        self.stream.failure = Some(failure);
        Err(told)
    }
}
