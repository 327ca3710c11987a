#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Says back what it was asked; fails or panics where asked to.
struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> Response {
        match request {
            Request::PolicyReload { name: Some(name) } if name == "none" => Response::error_next(
                ErrorCode::NotFound,
                "no policy none",
                "palisade policy list",
            ),
            Request::Stop => panic!("a handler that panics"),
            other => Response::ok(json!({ "asked": other })),
        }
    }
}

/// A server on a thread of its own, ended and joined also when the test fails.
struct Running {
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(&dir.path().join("control.sock"), Arc::new(Echo)).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let shutdown = async {
                let _ = stopped.await;
            };
            runtime.block_on(server.run(shutdown)).unwrap();
        });
        Self {
            dir,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn end(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends bytes as they are and reads the lines that come back.
fn raw(path: &Path, bytes: &[u8]) -> Vec<Response> {
    let mut stream = UnixStream::connect(path).unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut lines = Vec::new();
    for line in BufReader::new(stream).split(b'\n') {
        match line {
            Ok(line) => lines.push(Response::parse(&line).unwrap()),
            Err(_) => break,
        }
    }
    lines
}

fn code(response: &Response) -> Option<ErrorCode> {
    match response {
        Response::Ok(_) => None,
        Response::Error(failure) => Some(failure.code),
    }
}

#[test]
fn a_request_is_answered_and_a_failure_arrives_whole() {
    let server = Running::new();
    let path = server.path();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let response = call(&path, &Request::Disarm { on: true }).unwrap();
    assert_eq!(
        response,
        Response::Ok(json!({ "asked": { "op": "disarm", "on": true } }))
    );
    let name = Some("none".to_owned());
    let Response::Error(failure) = call(&path, &Request::PolicyReload { name }).unwrap() else {
        panic!("it should fail");
    };
    assert_eq!(failure.to_string(), "no policy none; palisade policy list");
}

#[test]
fn the_socket_goes_with_the_agent_and_the_next_call_says_so() {
    let mut server = Running::new();
    let path = server.path();
    call(&path, &Request::Status).unwrap();
    server.end();
    assert!(!path.exists());
    let error = call(&path, &Request::Status).unwrap_err();
    assert!(matches!(error, ControlError::NoAgent { .. }), "{error}");
    assert!(
        error.to_string().contains("palisade run --config"),
        "{error}"
    );
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(
        call(&path, &Request::Status),
        Err(ControlError::NoAgent { .. })
    ));
    drop(Server::bind(&path, Arc::new(Echo)).unwrap());
    fs::write(&path, b"mine").unwrap();
    assert!(Server::bind(&path, Arc::new(Echo)).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

#[test]
fn several_requests_and_garbage_share_a_connection() {
    let server = Running::new();
    let lines = b"{\"v\":1,\"op\":\"status\"}\nnonsense\n\xff\x00\n{\"v\":7}\n{\"v\":1,\"op\":\"leases\"}\n";
    let answers = raw(&server.path(), lines);
    let codes: Vec<_> = answers.iter().map(code).collect();
    let bad = Some(ErrorCode::BadRequest);
    assert_eq!(codes, [None, bad, bad, Some(ErrorCode::Version), None]);
}

#[test]
fn an_oversized_line_is_refused_and_the_next_peer_is_served() {
    let server = Running::new();
    let exact = b"x".repeat(MAX_REQUEST_BYTES);
    let answers = raw(&server.path(), &exact);
    assert_eq!(answers.first().and_then(code), Some(ErrorCode::TooLarge));
    raw(&server.path(), &b"y".repeat(4 * MAX_REQUEST_BYTES));
    assert!(call(&server.path(), &Request::Status).is_ok());
}

#[test]
fn a_handler_that_panics_costs_one_answer() {
    let server = Running::new();
    let answer = call(&server.path(), &Request::Stop).unwrap();
    assert_eq!(code(&answer), Some(ErrorCode::Failed));
    assert!(call(&server.path(), &Request::Status).is_ok());
}

#[test]
fn beyond_the_last_connection_peers_are_told_to_come_again() {
    let server = Running::new();
    let path = server.path();
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = UnixStream::connect(&path).unwrap();
        // An answer shows that the connection has its place.
        stream.write_all(b"{\"v\":1,\"op\":\"status\"}\n").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        held.push(stream);
    }
    let answer = call(&path, &Request::Status).unwrap();
    assert_eq!(code(&answer), Some(ErrorCode::Busy));
    drop(held);
    let served = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        call(&path, &Request::Status).is_ok_and(|answer| code(&answer).is_none())
    });
    assert!(served);
}

#[test]
fn another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED another_user_is_refused: it needs root to become somebody else");
        return;
    }
    let server = Running::new();
    let path = server.path();
    // Past the file modes, to see that the credentials are what counts.
    fs::set_permissions(server.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let answer = as_nobody(path.clone()).unwrap();
    let Response::Error(failure) = answer else {
        panic!("nobody was served");
    };
    assert_eq!(failure.code, ErrorCode::Denied);
    assert!(failure.message.contains("uid 65534"), "{failure}");
    // With the modes as the server made them, nobody does not even get so far.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(
        as_nobody(path.clone()),
        Err(ControlError::Denied { .. })
    ));
    assert!(call(&path, &Request::Status).is_ok());
}

/// Asks as uid 65534. Linux keeps credentials per thread, and the raw system call changes only
/// the calling one's.
fn as_nobody(path: PathBuf) -> Result<Response, ControlError> {
    std::thread::spawn(move || {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
        call(&path, &Request::Status)
    })
    .join()
    .unwrap()
}
