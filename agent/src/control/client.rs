//! The asking side: one request, one answer, no runtime.

use super::protocol::{MAX_RESPONSE_BYTES, REQUEST_TIMEOUT, Request, Response};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens. Exit code 6.
    #[error("no agent is running (no socket at {}); start one with: palisade run --config FILE", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
    },
    /// The socket may not be opened. Exit code 5.
    #[error("no permission to talk to the agent at {}; run this as root", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The conversation broke off.
    #[error("talking to the agent at {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The answer makes no sense.
    #[error("the agent's answer makes no sense: {0}; use the palisade command that came with it")]
    Protocol(String),
}

/// Asks the agent that listens at `path`. Takes twice [`REQUEST_TIMEOUT`] at most.
pub fn call(path: &Path, request: &Request) -> Result<Response, ControlError> {
    let failed = |source: io::Error| ControlError::Io {
        path: path.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NoAgent {
            path: path.to_owned(),
        },
        io::ErrorKind::PermissionDenied => ControlError::Denied {
            path: path.to_owned(),
        },
        _ => failed(error),
    })?;
    // The agent's own timeout comes first, so that its answer about it is heard.
    let timeout = Some(2 * REQUEST_TIMEOUT);
    stream.set_read_timeout(timeout).map_err(failed)?;
    stream.set_write_timeout(timeout).map_err(failed)?;
    let line = request
        .to_line()
        .map_err(|error| ControlError::Protocol(error.to_string()))?;
    let written = stream.write_all(&line);
    let mut answer = Vec::new();
    BufReader::new((&mut stream).take(MAX_RESPONSE_BYTES as u64))
        .read_until(b'\n', &mut answer)
        .map_err(failed)?;
    if answer.last() == Some(&b'\n') {
        return Response::parse(&answer).map_err(ControlError::Protocol);
    }
    // An agent that refuses to listen may answer without reading: only now does it matter.
    written.map_err(failed)?;
    Err(ControlError::Protocol("it broke off".to_owned()))
}
