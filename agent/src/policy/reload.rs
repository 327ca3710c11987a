//! Exchanging a policy while events flow.
//!
//! Invariants:
//! - Everything that can take long or go wrong happens before the running policy hears of it.
//! - Whatever goes wrong leaves the old version running and is told: an error to whoever asked,
//!   a [`PolicyEvent::Rejected`] to the log.

use super::compiled::{PolicyFile, Prepared};
use super::error::LoadError;
use super::event::PolicyEvent;
use super::registry::{Engine, Inner, PolicySource};
use super::worker::Swap;
use palisade_core::PolicyRef;
use std::path::Path;
use std::sync::mpsc;

impl Engine {
    /// Loads the policy's file again and lets the new version take over at a batch boundary, with
    /// the state of the old one. Blocks until then; not for the sensors' thread.
    ///
    /// # Errors
    /// The new version is refused and the old one runs on. With [`LoadError::Busy`] the new one
    /// takes over later.
    pub fn reload(&self, name: &str) -> Result<PolicyRef, LoadError> {
        let source = self.inner.source(name)?;
        self.reload_with(source)
    }

    /// As [`Self::reload`], with a changed file, settings, power or limits.
    ///
    /// # Errors
    /// As there.
    pub fn reload_with(&self, source: PolicySource) -> Result<PolicyRef, LoadError> {
        let inner = &self.inner;
        let _loading = inner.begin_loading();
        // Still there? It may have been unloaded meanwhile.
        inner.source(&source.name)?;
        inner.exchange(source)
    }
}

impl Inner {
    fn source(&self, name: &str) -> Result<PolicySource, LoadError> {
        let entries = self.entries();
        let entry = entries.get(name).map(|entry| entry.source.clone());
        entry.ok_or_else(|| LoadError::Unknown {
            name: name.to_owned(),
        })
    }

    /// Reloads the policies whose files are in `folder`, if their contents are others than those
    /// tried last. Faults become events.
    pub fn reload_changed(&self, changed: impl Fn(&Path) -> bool) {
        let _loading = self.begin_loading();
        let sources: Vec<_> = self
            .entries()
            .values()
            .filter(|entry| changed(&entry.source.path))
            .map(|entry| (entry.source.clone(), entry.tried.clone()))
            .collect();
        for (source, tried) in sources {
            let (_, now) = read(&source);
            if now != tried {
                // The fault was told as an event.
                let _ = self.exchange(source);
            }
        }
    }

    /// With the lock on loading held.
    fn exchange(&self, source: PolicySource) -> Result<PolicyRef, LoadError> {
        let name = source.name.clone();
        let (file, tried) = read(&source);
        let generation = {
            let mut entries = self.entries();
            let Some(entry) = entries.get_mut(&name) else {
                return Err(LoadError::Unknown { name });
            };
            entry.generation += 1;
            entry.tried = tried;
            entry.loading = true;
            entry.generation
        };
        let prepared = file.and_then(|file| Prepared::new(&self.shared, &source, &file));
        let answer = match prepared {
            Ok(prepared) => self.hand_over(&source, prepared, generation),
            Err(error) => {
                let text = error.to_string();
                if let Some(entry) = self.entries().get(&name) {
                    entry
                        .board
                        .update(|counters| counters.last_error = Some(text.clone()));
                }
                // The receiver goes before the engine only when the agent ends.
                self.events.send(PolicyEvent::Rejected {
                    name: name.clone(),
                    error: text,
                });
                Err(error)
            }
        };
        let accepted = matches!(answer, Ok(_) | Err(LoadError::Busy { .. }));
        if let Some(entry) = self.entries().get_mut(&name) {
            entry.loading = false;
            if accepted {
                entry.source = source;
            }
        }
        if accepted {
            self.rewatch();
        }
        answer
    }

    fn hand_over(
        &self,
        source: &PolicySource,
        prepared: Prepared,
        generation: u64,
    ) -> Result<PolicyRef, LoadError> {
        let name = source.name.clone();
        let queue = self
            .entries()
            .get(&name)
            .map(|entry| std::sync::Arc::clone(&entry.queue));
        let Some(queue) = queue else {
            return Err(LoadError::Unknown { name });
        };
        let (reply, answer) = mpsc::channel();
        queue.swap(Swap {
            new: prepared.running(source, generation),
            reply,
        });
        answer
            .recv_timeout(self.options.swap_wait)
            .unwrap_or(Err(LoadError::Busy { name }))
    }
}

/// The file, and what stands for its contents when asking whether they changed.
fn read(source: &PolicySource) -> (Result<PolicyFile, LoadError>, String) {
    let file = PolicyFile::read(&source.path, source.limits.file_bytes);
    let stamp = match &file {
        Ok(file) => file.sha256.clone(),
        Err(error) => error.to_string(),
    };
    (file, stamp)
}
