//! The trait that a policy implements, and the macro that turns it into a component.

use crate::{Record, Requests, Settings};

/// A policy: a struct with its state, and what it does with events.
///
/// A policy sees no clock: `now_ns` is `CLOCK_BOOTTIME` in nanoseconds, moves forward only, and
/// is not before the time of any record in the batch. Keep all state bounded (see
/// [`crate::BoundedMap`]): the agent limits a policy's memory, and a policy that hits the limit
/// is restarted from its last checkpoint.
pub trait Policy: Sized {
    /// Makes the policy from its settings: every setting of the manifest, defaults filled in.
    ///
    /// # Errors
    /// The message, for the operator, why these settings cannot work. The policy is refused.
    fn init(settings: &Settings) -> Result<Self, String>;

    /// Takes the records of the subscribed kinds, oldest first. Skip kinds that you do not know.
    fn on_batch(&mut self, now_ns: u64, records: &[Record], out: &mut Requests);

    /// Called about once a sampling window when there is nothing else to call.
    fn on_tick(&mut self, now_ns: u64, out: &mut Requests) {
        let _ = (now_ns, out);
    }

    /// State for the next instance: at a reload, or after a restart. Empty: nothing to hand over.
    /// See [`crate::state`] for a way to write it.
    fn checkpoint(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over the state of an earlier instance. Called once, after [`Policy::init`].
    /// `state_version` is the `state-version` of the manifest that it was written under.
    ///
    /// # Errors
    /// Why the state cannot be used. The policy then starts without it, or the reload is refused.
    fn restore(&mut self, state_version: u32, state: &[u8]) -> Result<(), String> {
        let _ = (state_version, state);
        Ok(())
    }
}

/// The manifest that [`policy!`](crate::policy!) joined to a policy, for the test harness.
pub trait Described {
    /// Text of `policy.toml`.
    const MANIFEST: &'static str;
}

/// Exports a [`Policy`] as the component that the agent loads, with its manifest.
///
/// The path of the manifest is relative to the folder of the crate's `Cargo.toml`. On targets
/// other than `wasm32` nothing is exported; the policy is then a plain library that
/// [`crate::testing::Harness`] can drive.
///
/// ```
/// use palisade_policy_sdk::{Policy, Record, Requests, Settings};
///
/// pub struct Quiet;
///
/// impl Policy for Quiet {
///     fn init(_: &Settings) -> Result<Self, String> {
///         Ok(Self)
///     }
///     fn on_batch(&mut self, _: u64, _: &[Record], _: &mut Requests) {}
/// }
///
/// palisade_policy_sdk::policy!(Quiet, "examples/quiet.toml");
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! policy {
    ($policy:ty, $manifest:literal) => {
        impl $crate::Described for $policy {
            const MANIFEST: &'static str =
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $manifest));
        }

        $crate::embed_manifest!($manifest);

        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code)] // The exports that wit-bindgen generates.
        const _: () = {
            use $crate::bindings;

            thread_local! {
                static SLOT: $crate::runtime::Slot<$policy> =
                    const { $crate::runtime::Slot::empty() };
            }

            struct Component;

            impl bindings::Guest for Component {
                fn init(
                    settings: ::std::vec::Vec<(::std::string::String, bindings::Setting)>,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    SLOT.with(|slot| slot.init(settings))
                }
                fn on_batch(
                    now_ns: u64,
                    events: ::std::vec::Vec<u64>,
                ) -> ::std::vec::Vec<bindings::Request> {
                    SLOT.with(|slot| slot.on_batch(now_ns, &events))
                }
                fn on_tick(now_ns: u64) -> ::std::vec::Vec<bindings::Request> {
                    SLOT.with(|slot| slot.on_tick(now_ns))
                }
                fn checkpoint() -> ::std::vec::Vec<u8> {
                    SLOT.with(|slot| slot.checkpoint())
                }
                fn restore(
                    state_version: u32,
                    state: ::std::vec::Vec<u8>,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    SLOT.with(|slot| slot.restore(state_version, &state))
                }
            }

    bindings::export!(Component with_types_in $crate::bindings);
        };
    };
}

/// Puts a manifest into the module's custom section `palisade:manifest`. [`policy!`] does this;
/// use it alone only for a component that is written against the bindings directly.
#[macro_export]
macro_rules! embed_manifest {
    ($manifest:literal) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code)] // `link_section`: data for the agent, never read by the policy.
        const _: () = {
            const TEXT: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $manifest));
            #[used]
            #[unsafe(link_section = "palisade:manifest")]
            static MANIFEST: [u8; TEXT.len()] = {
                let mut copy = [0; TEXT.len()];
                copy.copy_from_slice(TEXT);
                copy
            };
        };
    };
}
