//! An instance together with what it takes to make another one like it.

use super::compiled::Compiled;
use super::engine::EngineShared;
use super::instance::Instance;
use super::limits::Limits;
use super::settings::Settings;
use palisade_core::PolicyRef;
use std::sync::Arc;

/// A policy that runs or is about to.
pub(super) struct Running {
    pub instance: Instance,
    pub compiled: Arc<Compiled>,
    pub settings: Arc<Settings>,
    pub limits: Limits,
    pub reference: PolicyRef,
}

/// An instance's state at a batch's end.
#[derive(Clone)]
pub(super) struct Saved {
    /// From the manifest of the policy that wrote it.
    pub state_version: u32,
    pub bytes: Vec<u8>,
    /// The last batch that it knows of.
    pub seq: u64,
}

impl Running {
    pub fn mask(&self) -> u64 {
        self.compiled.manifest.mask()
    }

    /// Takes its state. A failure is a fatal strike.
    pub fn save(&mut self, now_ns: u64, seq: u64) -> Result<Saved, super::Strike> {
        let bytes = self.instance.checkpoint(now_ns)?;
        Ok(Saved {
            state_version: self.compiled.manifest.state_version,
            bytes,
            seq,
        })
    }

    /// Gives it a state. After a failure it is not to be used.
    pub fn restore(&mut self, now_ns: u64, saved: &Saved) -> Result<(), String> {
        match self
            .instance
            .restore(now_ns, saved.state_version, &saved.bytes)
        {
            Ok(answer) => answer,
            Err(strike) => Err(strike.to_string()),
        }
    }

    /// Replaces the instance by a new one with the state `saved`, or with none if it does not take
    /// that. True if the state was taken; an error if there is no new instance.
    pub fn restart(
        &mut self,
        shared: &Arc<EngineShared>,
        now_ns: u64,
        saved: Option<&Saved>,
    ) -> Result<bool, String> {
        self.renew(shared)?;
        let Some(saved) = saved else { return Ok(false) };
        if self.restore(now_ns, saved).is_ok() {
            return Ok(true);
        }
        self.renew(shared)?;
        Ok(false)
    }

    fn renew(&mut self, shared: &Arc<EngineShared>) -> Result<(), String> {
        let name = &self.reference.name;
        let instance = Instance::new(shared, name, &self.compiled, &self.settings, &self.limits);
        self.instance = instance.map_err(|error| error.to_string())?;
        Ok(())
    }
}
