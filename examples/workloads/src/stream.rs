//! A server that answers as language models are served: after a while the first token, then one after the other.
//!
//! It listens on loopback only, at a port that the kernel chooses. Must not be slow in anything but what it was told.

use crate::cpu::End;
use crate::place;
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// What is sent for each token.
const TOKEN: &[u8; 6] = b"token\n";
/// How often it looks whether it is time to end.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Args, Clone, Debug)]
pub(crate) struct StreamArgs {
    /// Time to the first token, milliseconds
    #[arg(long)]
    first_ms: u64,
    /// Tokens in an answer
    #[arg(long, default_value_t = 8)]
    tokens: u32,
    /// Time between two tokens, milliseconds
    #[arg(long, default_value_t = 20)]
    every_ms: u64,
}

/// Prints its port and serves, a thread for each connection; those end with it.
pub(crate) fn run(args: &StreamArgs, end: End) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening on loopback")?;
    listener.set_nonblocking(true).context("the listener")?;
    let port = listener.local_addr().context("the listener")?.port();
    place::emit(&json!({ "event": "listening", "pid": std::process::id(), "port": port }))?;
    while !end.reached() {
        match listener.accept() {
            Ok((stream, _)) => {
                let args = args.clone();
                std::thread::Builder::new()
                    .name("connection".to_owned())
                    // A client that goes away ends its connection and nothing else.
                    .spawn(move || drop(serve(stream, &args, end)))
                    .context("starting a thread")?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => end.sleep(LOOK),
            Err(error) => return Err(error).context("accepting a connection"),
        }
    }
    Ok(())
}

/// Answers each message that comes, until the client ends.
fn serve(mut stream: TcpStream, args: &StreamArgs, end: End) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut message = [0; 4096];
    while !end.reached() && stream.read(&mut message)? > 0 {
        for token in 0..args.tokens {
            let wait = if token == 0 {
                args.first_ms
            } else {
                args.every_ms
            };
            end.sleep(Duration::from_millis(wait));
            stream.write_all(TOKEN)?;
        }
    }
    Ok(())
}
