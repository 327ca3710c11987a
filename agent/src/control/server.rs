//! The answering side.
//!
//! Invariant: at most [`MAX_CONNECTIONS`] peers are served at once, each for one request at a
//! time and for no longer than [`REQUEST_TIMEOUT`] each; the rest is told so and left.

use super::protocol::{ErrorCode, MAX_REQUEST_BYTES, REQUEST_TIMEOUT, Request, Response};
use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Peers that are served at once.
pub const MAX_CONNECTIONS: usize = 16;
/// At the end, requests under way get so long to finish.
const GRACE: Duration = Duration::from_secs(1);
/// After a failed `accept` (out of descriptors, say) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What answers.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Called on a thread of its own; may block for less than
    /// [`REQUEST_TIMEOUT`]. What is answered later is thrown away, but its effect is not.
    fn handle(&self, request: Request) -> Response;
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It cannot be made.
    #[error("cannot listen at {}: {source}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// A socket that peers can connect to, and that goes when this is dropped.
pub struct Server {
    listener: StdListener,
    path: PathBuf,
    handler: Arc<dyn Handler>,
    own_uid: u32,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Makes the socket, mode 0600. Call it with the agent's lock held: a socket that is there
    /// already belongs to an agent that has ended.
    pub fn bind(path: &Path, handler: Arc<dyn Handler>) -> Result<Self, ServerError> {
        let listener = listen(path).map_err(|source| ServerError::Bind {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            handler,
            own_uid: rustix::process::geteuid().as_raw(),
        })
    }

    /// Serves until `shutdown` is ready. Needs a tokio runtime with I/O and time.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                // Reaps what has ended, so that the set does not grow.
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("control socket: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Some(refusal) = self.refusal(stream.peer_cred()) {
                reject(&stream, &refusal);
                continue;
            }
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                reject(&stream, &busy());
                continue;
            };
            let handler = Arc::clone(&self.handler);
            connections.spawn(async move {
                // A peer that goes away in the middle concerns nobody else.
                let _ = serve(stream, handler).await;
                drop(slot);
            });
        }
        drop(listener);
        let finish = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(GRACE, finish).await;
        Ok(())
    }

    fn refusal(&self, peer: io::Result<UCred>) -> Option<Response> {
        let who = match peer {
            Ok(peer) if peer.uid() == 0 || peer.uid() == self.own_uid => return None,
            Ok(peer) => format!("uid {}", peer.uid()),
            Err(error) => format!("a peer without credentials ({error})"),
        };
        tracing::warn!("control socket: {who} was refused");
        Some(Response::error_next(
            ErrorCode::Denied,
            format!("{who} may not control this agent"),
            format!("run this as root or as uid {}", self.own_uid),
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone with the folder; nothing depends on it.
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<StdListener> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is not a socket",
            ));
        }
        Err(_) => {}
    }
    let listener = StdListener::bind(path)?;
    // Until here the umask decides who may connect; what they say is judged by credentials anyway.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers without listening. A line fits the socket's empty buffer; if not, the peer sees the end.
fn reject(stream: &UnixStream, response: &Response) {
    let _ = stream.try_write(&response.to_line());
}

fn busy() -> Response {
    Response::error_next(
        ErrorCode::Busy,
        format!("{MAX_CONNECTIONS} connections are open already"),
        "try again in a moment",
    )
}

/// One request after the other, until the peer ends, stalls or breaks the rules.
async fn serve(mut stream: UnixStream, handler: Arc<dyn Handler>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(MAX_REQUEST_BYTES as u64);
        let Ok(read) = timeout(REQUEST_TIMEOUT, bounded.read_until(b'\n', &mut line)).await else {
            let late = Response::error(ErrorCode::Timeout, "no whole request came in time");
            return send(&mut writer, &late).await;
        };
        if read? == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && line.len() >= MAX_REQUEST_BYTES {
            let long = Response::error_next(
                ErrorCode::TooLarge,
                "the request is too long",
                format!("at most {MAX_REQUEST_BYTES} bytes are read"),
            );
            return send(&mut writer, &long).await;
        }
        let response = match Request::parse(&line) {
            Ok(request) => answer(request, Arc::clone(&handler)).await,
            Err(response) => response,
        };
        send(&mut writer, &response).await?;
    }
}

async fn answer(request: Request, handler: Arc<dyn Handler>) -> Response {
    // A thread of its own: the runtime has one thread, and signals are waited for on it.
    let task = tokio::task::spawn_blocking(move || handler.handle(request));
    match timeout(REQUEST_TIMEOUT, task).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Response::error(ErrorCode::Failed, "the agent failed to answer"),
        Err(_) => Response::error_next(
            ErrorCode::Timeout,
            "the agent did not answer in time; it may still do what was asked",
            "look with: palisade status",
        ),
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    match timeout(REQUEST_TIMEOUT, writer.write_all(&response.to_line())).await {
        Ok(written) => written,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
