//! The key that signs checkpoints.
//!
//! Invariants: the secret half is readable by its owner alone and never leaves the process;
//! it is made once, and an existing log never silently gets another key. What a signature
//! proves: whoever wrote the checkpoint could read the key file. It is no proof against root
//! on the same host; for that, keep a head elsewhere.

use super::{AuditError, chain};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// File with the secret half, in the log's directory.
pub const SECRET_FILE: &str = "checkpoint.key";
/// File with the public half, beside it.
pub const PUBLIC_FILE: &str = "checkpoint.pub";

/// Separates these signatures from any other use of the key.
const CONTEXT: &[u8] = b"palisade audit checkpoint v1\n";
/// What stands between the signed part of a checkpoint's line and the signature.
const SIG_FIELD: &[u8] = b",\"sig\":\"";

/// Signs checkpoints.
pub(crate) struct Signing {
    key: SigningKey,
    public_hex: String,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing")
            .field("public", &self.public_hex)
            .finish_non_exhaustive()
    }
}

impl Signing {
    /// Reads the key of `dir`, or makes one if the log is new.
    pub(crate) fn open(dir: &Path, log_exists: bool) -> Result<Self, AuditError> {
        let secret = dir.join(SECRET_FILE);
        let seed = match fs::read_to_string(&secret) {
            Ok(text) => decode::<32>(text.trim()).ok_or_else(|| AuditError::Key {
                path: secret.clone(),
                what: "it is not 64 hex digits".into(),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !log_exists => {
                make(dir, &secret)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(AuditError::Key {
                    path: secret,
                    what: "it is gone, and the log was sealed with it; restore it, or move the \
                           old log (with checkpoint.pub) elsewhere to begin a new one"
                        .into(),
                });
            }
            Err(error) => return Err(AuditError::io("read", &secret, error)),
        };
        let key = SigningKey::from_bytes(&seed);
        let public_hex = chain::hex(key.verifying_key().as_bytes());
        let public = dir.join(PUBLIC_FILE);
        match fs::read_to_string(&public) {
            Ok(text) if text.trim() == public_hex => {}
            Ok(_) => {
                return Err(AuditError::Key {
                    path: public,
                    what: format!("it does not belong to {SECRET_FILE} beside it"),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write_new(&public, &public_hex, 0o644)?;
            }
            Err(error) => return Err(AuditError::io("read", &public, error)),
        }
        Ok(Self { key, public_hex })
    }

    /// The public half, lower-case hex.
    pub(crate) fn public_hex(&self) -> &str {
        &self.public_hex
    }

    /// Ends a checkpoint's line, which so far lacks only its signature and closing brace.
    pub(crate) fn seal(&self, line: &mut Vec<u8>) {
        let signature = self.key.sign(&[CONTEXT, line.as_slice()].concat());
        line.extend_from_slice(SIG_FIELD);
        line.extend_from_slice(chain::hex(&signature.to_bytes()).as_bytes());
        line.extend_from_slice(b"\"}");
    }
}

/// Checks checkpoints.
#[derive(Clone, Debug)]
pub(crate) struct Checking(VerifyingKey);

impl Checking {
    /// Reads a public key's file.
    pub(crate) fn open(path: &Path) -> Result<Self, AuditError> {
        let text = fs::read_to_string(path).map_err(|e| AuditError::io("read", path, e))?;
        decode::<32>(text.trim())
            .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
            .map(Self)
            .ok_or_else(|| AuditError::Key {
                path: path.to_owned(),
                what: "it is no ed25519 public key in hex".into(),
            })
    }

    /// Whether the signature covers every byte of the line before it.
    pub(crate) fn covers(&self, line: &[u8]) -> bool {
        let Some(split) = line.len().checked_sub(SIG_FIELD.len() + 128 + 2) else {
            return false;
        };
        let (signed, rest) = line.split_at(split);
        let Some(rest) = rest.strip_prefix(SIG_FIELD) else {
            return false;
        };
        let Some(hex) = rest.strip_suffix(b"\"}") else {
            return false;
        };
        let Some(bytes) = std::str::from_utf8(hex).ok().and_then(decode::<64>) else {
            return false;
        };
        let message = [CONTEXT, signed].concat();
        self.0
            .verify_strict(&message, &Signature::from_bytes(&bytes))
            .is_ok()
    }
}

fn make(dir: &Path, path: &Path) -> Result<[u8; 32], AuditError> {
    let mut seed = [0u8; 32];
    let source = Path::new("/dev/urandom");
    File::open(source)
        .and_then(|mut f| f.read_exact(&mut seed))
        .map_err(|e| AuditError::io("read", source, e))?;
    // By way of another name: a crash must not leave half a key.
    let fresh = dir.join("checkpoint.key.new");
    let _ = fs::remove_file(&fresh);
    write_new(&fresh, &chain::hex(&seed), 0o600)?;
    fs::rename(&fresh, path).map_err(|e| AuditError::io("rename", path, e))?;
    Ok(seed)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), AuditError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut f| {
            f.write_all(text.as_bytes())?;
            f.write_all(b"\n")?;
            f.sync_all()
        })
        .map_err(|e| AuditError::io("write", path, e))
}

/// Lower-case hex only: a signature has one spelling, so none of its bytes can be changed.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N {
        return None;
    }
    let mut out = [0u8; N];
    for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
