//! What is said over the control socket.
//!
//! A request is one line `{"v":1,"op":"status"}`, its answer one line `{"v":1,"ok":…}` or
//! `{"v":1,"error":{"code":"…","message":"…","next":"…"}}`. Invariant: the version is looked at
//! before anything else, so that both sides can say plainly that the other is too new.

use palisade_core::LeaseId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Version of this protocol.
pub const VERSION: u64 = 1;
/// Longest request line, bytes, with its newline.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Longest answer that a client takes, bytes.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Time for one request: to arrive, and to be answered.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The names of all requests, for the error that an unknown one gets.
const OPS: &[&str] = &[
    "status",
    "metrics",
    "policy_list",
    "policy_reload",
    "leases",
    "lease_release",
    "disarm",
    "stop",
];

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the agent fares.
    Status,
    /// The metrics, a `Snapshot` of `crate::metrics`. Begins to gather them, or goes on; that ends some seconds
    /// after the last such request.
    Metrics,
    /// The policies and what became of them.
    PolicyList,
    /// Load a policy's file again.
    PolicyReload {
        /// Which; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// The leases in force.
    Leases,
    /// Undo a lease.
    LeaseRelease {
        /// Which; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<LeaseId>,
    },
    /// The kill switch.
    Disarm {
        /// Whether nothing may be acted on.
        on: bool,
    },
    /// End the agent as SIGTERM would.
    Stop,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// It was done; what was asked for.
    Ok(Value),
    /// It was not done.
    Error(Failure),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", next.as_ref().map(|next| format!("; {next}")).unwrap_or_default())]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what is wrong.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The line is not a request.
    BadRequest,
    /// The request has a version that this agent does not speak.
    Version,
    /// There is no such operation.
    UnknownOp,
    /// The line is too long.
    TooLarge,
    /// The peer may not ask.
    Denied,
    /// Too many connections at once.
    Busy,
    /// It took too long.
    Timeout,
    /// What was named does not exist.
    NotFound,
    /// It was refused: a policy that does not load, for example.
    Refused,
    /// The agent failed to do it.
    Failed,
    /// A code that this version does not know.
    #[serde(other)]
    Other,
}

impl Response {
    /// A value that can be written as JSON; a failure if it cannot.
    pub fn ok(value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Response::Ok(value),
            Err(error) => Response::error(ErrorCode::Failed, format!("no answer: {error}")),
        }
    }

    /// A failure without advice.
    pub fn error(code: ErrorCode, message: impl Into<String>) -> Self {
        Response::Error(Failure {
            code,
            message: message.into(),
            next: None,
        })
    }

    /// A failure that says what to do next.
    pub fn error_next(
        code: ErrorCode,
        message: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Response::Error(Failure {
            code,
            message: message.into(),
            next: Some(next.into()),
        })
    }

    /// As a line, newline included.
    pub(super) fn to_line(&self) -> Vec<u8> {
        let object = match self {
            Response::Ok(value) => json!({ "v": VERSION, "ok": value }),
            Response::Error(failure) => json!({ "v": VERSION, "error": failure }),
        };
        let mut line = object.to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// From a line; the text says what is wrong with it.
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        let mut object = object(line)?;
        match object.remove("v").as_ref().and_then(Value::as_u64) {
            Some(VERSION) => {}
            other => return Err(format!("the agent speaks version {other:?}, not {VERSION}")),
        }
        if let Some(value) = object.remove("ok") {
            return Ok(Response::Ok(value));
        }
        let error = object.remove("error").ok_or("neither `ok` nor `error`")?;
        serde_json::from_value(error)
            .map(Response::Error)
            .map_err(|error| error.to_string())
    }
}

impl Request {
    /// As a line, newline included.
    pub(super) fn to_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        value["v"] = VERSION.into();
        let mut line = serde_json::to_vec(&value)?;
        line.push(b'\n');
        Ok(line)
    }

    /// From a line, or the answer that it gets instead.
    pub(super) fn parse(line: &[u8]) -> Result<Self, Response> {
        let bad = |detail: String| {
            Response::error_next(
                ErrorCode::BadRequest,
                format!("not a request: {detail}"),
                "send one line like {\"v\":1,\"op\":\"status\"}",
            )
        };
        let mut object = object(line).map_err(bad)?;
        let version = object.remove("v");
        if version.as_ref().and_then(Value::as_u64) != Some(VERSION) {
            let said = version.map_or_else(|| "none".to_owned(), |v| v.to_string());
            return Err(Response::error_next(
                ErrorCode::Version,
                format!("request version {said}; this agent speaks {VERSION}"),
                "use the palisade command that came with the running agent",
            ));
        }
        match object.get("op").and_then(Value::as_str) {
            Some(op) if OPS.contains(&op) => {}
            op => {
                return Err(Response::error_next(
                    ErrorCode::UnknownOp,
                    format!("no such operation: {}", op.unwrap_or("none given")),
                    format!("operations are: {}", OPS.join(", ")),
                ));
            }
        }
        serde_json::from_value(Value::Object(object)).map_err(|error| bad(error.to_string()))
    }
}

fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_request_reads_back_and_is_listed() {
        let requests = [
            Request::Status,
            Request::Metrics,
            Request::PolicyList,
            Request::PolicyReload { name: None },
            Request::PolicyReload {
                name: Some("a".into()),
            },
            Request::Leases,
            Request::LeaseRelease {
                id: Some(LeaseId(7)),
            },
            Request::Disarm { on: true },
            Request::Stop,
        ];
        for request in requests {
            assert_eq!(Request::parse(&request.to_line().unwrap()), Ok(request));
        }
        assert_eq!(
            Request::parse(br#"{"v":1,"op":"lease_release","id":7}"#),
            Ok(Request::LeaseRelease {
                id: Some(LeaseId(7))
            })
        );
    }

    #[test]
    fn what_is_no_request_gets_a_code_and_advice() {
        let table: &[(&[u8], ErrorCode)] = &[
            (b"", ErrorCode::BadRequest),
            (b"\xff\xfe", ErrorCode::BadRequest),
            (b"[1]", ErrorCode::BadRequest),
            (b"{}", ErrorCode::Version),
            (br#"{"v":2,"op":"status"}"#, ErrorCode::Version),
            (br#"{"v":"1","op":"status"}"#, ErrorCode::Version),
            (br#"{"v":1}"#, ErrorCode::UnknownOp),
            (br#"{"v":1,"op":"reboot"}"#, ErrorCode::UnknownOp),
            (br#"{"v":1,"op":"disarm"}"#, ErrorCode::BadRequest),
            (br#"{"v":1,"op":"disarm","on":1}"#, ErrorCode::BadRequest),
            (
                br#"{"v":1,"op":"disarm","on":true,"x":1}"#,
                ErrorCode::BadRequest,
            ),
            (
                br#"{"v":1,"op":"lease_release","id":-1}"#,
                ErrorCode::BadRequest,
            ),
        ];
        for (line, code) in table {
            let Err(Response::Error(failure)) = Request::parse(line) else {
                panic!("{line:?} passed");
            };
            assert_eq!(failure.code, *code, "{line:?}");
            assert!(failure.next.is_some());
        }
        let deep = [b"{\"v\":1,\"op\":".as_slice(), &b"[".repeat(60_000)].concat();
        assert!(Request::parse(&deep).is_err());
    }

    #[test]
    fn answers_read_back_and_unknown_codes_are_taken() {
        for response in [
            Response::ok(json!({ "a": [1, 2] })),
            Response::Ok(Value::Null),
            Response::error(ErrorCode::NotFound, "x"),
            Response::error_next(ErrorCode::Refused, "x", "y"),
        ] {
            assert_eq!(Response::parse(&response.to_line()), Ok(response));
        }
        let later = br#"{"v":1,"error":{"code":"eclipse","message":"m"}}"#;
        let Ok(Response::Error(failure)) = Response::parse(later) else {
            panic!("not taken");
        };
        assert_eq!(failure.code, ErrorCode::Other);
        assert!(
            Response::parse(br#"{"v":9,"ok":1}"#)
                .unwrap_err()
                .contains("version")
        );
        assert!(Response::parse(br#"{"v":1}"#).is_err());
    }
}
