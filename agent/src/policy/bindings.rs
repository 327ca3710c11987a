//! The WIT world as Rust types, generated at compile time so that the two cannot drift apart.

#![allow(clippy::pedantic, missing_debug_implementations)]

wasmtime::component::bindgen!({
    path: "../policy-sdk/wit",
    world: "policy",
});
