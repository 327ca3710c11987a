//! What stands between the generated exports and a [`Policy`]; `wasm32` only.

use crate::{Level, Policy, Requests, Settings, bindings, host, wire};
use std::cell::RefCell;

/// The one instance of a policy in its component.
pub struct Slot<P>(RefCell<Option<P>>);

impl<P> std::fmt::Debug for Slot<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl<P: Policy> Slot<P> {
    /// A slot in which `init` has not been called yet.
    pub const fn empty() -> Self {
        Self(RefCell::new(None))
    }

    /// The export `init`.
    pub fn init(&self, settings: Vec<(String, bindings::Setting)>) -> Result<(), String> {
        // A panic traps; without this nobody would learn its message.
        std::panic::set_hook(Box::new(|info| host::log(Level::Error, &info.to_string())));
        let settings = settings
            .into_iter()
            .map(|(name, value)| (name, wire::setting(value)))
            .collect::<Settings>();
        let policy = P::init(&settings)?;
        *self.0.borrow_mut() = Some(policy);
        Ok(())
    }

    /// The export `on-batch`. Words that are no whole records are left out.
    pub fn on_batch(&self, now_ns: u64, words: &[u64]) -> Vec<bindings::Request> {
        let whole = words.len() - words.len() % palisade_abi::RECORD_WORDS;
        let records = palisade_abi::records(&words[..whole]).unwrap_or_default();
        self.collect(|policy, out| policy.on_batch(now_ns, records, out))
    }

    /// The export `on-tick`.
    pub fn on_tick(&self, now_ns: u64) -> Vec<bindings::Request> {
        self.collect(|policy, out| policy.on_tick(now_ns, out))
    }

    /// The export `checkpoint`.
    pub fn checkpoint(&self) -> Vec<u8> {
        self.0
            .borrow()
            .as_ref()
            .map(Policy::checkpoint)
            .unwrap_or_default()
    }

    /// The export `restore`.
    pub fn restore(&self, state_version: u32, state: &[u8]) -> Result<(), String> {
        match self.0.borrow_mut().as_mut() {
            Some(policy) => policy.restore(state_version, state),
            None => Err("restore before init".to_owned()),
        }
    }

    fn collect(&self, call: impl FnOnce(&mut P, &mut Requests)) -> Vec<bindings::Request> {
        let mut out = Requests::default();
        if let Some(policy) = self.0.borrow_mut().as_mut() {
            call(policy, &mut out);
        }
        if out.dropped() > 0 {
            host::log(
                Level::Warn,
                &format!(
                    "{} requests over the limit of one call left out",
                    out.dropped()
                ),
            );
        }
        out.into_vec().into_iter().map(wire::request).collect()
    }
}
