//! What a policy can ask for.

use std::borrow::Cow;

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Id in the initial PID namespace.
    pub pid: u32,
    /// Start, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
}

impl From<&palisade_abi::Header> for ProcessId {
    fn from(header: &palisade_abi::Header) -> Self {
        Self {
            pid: header.pid,
            start_ns: header.start_ns,
        }
    }
}

/// On whom to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// One process. Containments act on its workload.
    Process(ProcessId),
    /// A workload (cgroup), by the id in the records' headers.
    Workload(u64),
}

/// What to do, mildest first. The operator's configuration caps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Tell people.
    Alert,
    /// Relative CPU weight, 1 to 10,000; the default of a cgroup is 100.
    CpuWeight(u32),
    /// Ceiling on CPU time, thousandths of one CPU.
    CpuQuota(u32),
    /// Stop the workload's tasks until the lease ends.
    Freeze,
    /// SIGTERM to the process.
    Terminate,
    /// SIGKILL to every process of the workload.
    Kill,
}

impl Action {
    /// The power that the manifest must ask for.
    pub fn power(self) -> &'static str {
        match self {
            Action::Alert => "alert",
            Action::CpuWeight(_) | Action::CpuQuota(_) => "throttle",
            Action::Freeze => "freeze",
            Action::Terminate => "signal",
            Action::Kill => "kill",
        }
    }
}

/// How much a person should care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

/// One number that speaks for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// What was measured.
    pub name: Cow<'static, str>,
    /// The measurement.
    pub value: f64,
    /// Its unit: `ns`, `ms`, `bytes`, `ratio`, `count` and so on.
    pub unit: Cow<'static, str>,
}

/// One thing asked for. Build it with the constructor for its action and the methods behind it:
///
/// ```
/// use palisade_policy_sdk::{Request, Severity, Target};
/// let request = Request::cpu_quota(Target::Workload(4711), 100)
///     .lease_ms(10_000)
///     .severity(Severity::Warning)
///     .reason("It holds the driver's lock while 5 others wait")
///     .evidence("hold", 912.0, "ms")
///     .evidence("others' waiting share", 0.97, "ratio");
/// assert_eq!(request.evidence.len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// On whom.
    pub target: Target,
    /// What.
    pub action: Action,
    /// How long a containment is to last unless asked for again, milliseconds.
    pub lease_ms: u32,
    /// How urgent.
    pub severity: Severity,
    /// One sentence for the operator.
    pub reason: String,
    /// The numbers behind it.
    pub evidence: Vec<Evidence>,
}

impl Request {
    /// Lease of a containment that names none, milliseconds.
    pub const DEFAULT_LEASE_MS: u32 = 10_000;

    /// Tells people.
    pub fn alert(target: Target) -> Self {
        Self::new(target, Action::Alert)
    }

    /// Sets a relative CPU weight, 1 to 10,000.
    pub fn cpu_weight(target: Target, weight: u32) -> Self {
        Self::new(target, Action::CpuWeight(weight))
    }

    /// Limits CPU time, thousandths of one CPU.
    pub fn cpu_quota(target: Target, permille: u32) -> Self {
        Self::new(target, Action::CpuQuota(permille))
    }

    /// Stops a workload until the lease ends.
    pub fn freeze(target: Target) -> Self {
        Self::new(target, Action::Freeze)
    }

    /// SIGTERM to one process.
    pub fn terminate(process: ProcessId) -> Self {
        Self::new(Target::Process(process), Action::Terminate)
    }

    /// SIGKILL to every process of a workload.
    pub fn kill(target: Target) -> Self {
        Self::new(target, Action::Kill)
    }

    /// Any action, as a warning, with the default lease and no reason yet.
    pub fn new(target: Target, action: Action) -> Self {
        Self {
            target,
            action,
            lease_ms: Self::DEFAULT_LEASE_MS,
            severity: Severity::Warning,
            reason: String::new(),
            evidence: Vec::new(),
        }
    }

    /// How long the containment is to last unless asked for again, milliseconds.
    #[must_use]
    pub fn lease_ms(mut self, lease_ms: u32) -> Self {
        self.lease_ms = lease_ms;
        self
    }

    /// How urgent.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// One sentence for the operator.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Adds one number. Every request should carry those that led to it.
    #[must_use]
    pub fn evidence(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: f64,
        unit: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.evidence.push(Evidence {
            name: name.into(),
            value,
            unit: unit.into(),
        });
        self
    }
}

/// The requests of one call, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    list: Vec<Request>,
    dropped: u64,
}

impl Requests {
    /// Requests that one call can make; later ones are dropped and counted.
    pub const LIMIT: usize = 64;

    /// Asks for something.
    pub fn push(&mut self, request: Request) {
        if self.list.len() < Self::LIMIT {
            self.list.push(request);
        } else {
            self.dropped += 1;
        }
    }

    /// What has been asked for so far.
    pub fn as_slice(&self) -> &[Request] {
        &self.list
    }

    /// Requests over [`Requests::LIMIT`].
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The requests alone.
    pub fn into_vec(self) -> Vec<Request> {
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_over_the_limit_are_counted() {
        let mut out = Requests::default();
        for _ in 0..Requests::LIMIT + 3 {
            out.push(Request::alert(Target::Workload(1)));
        }
        assert_eq!((out.as_slice().len(), out.dropped()), (Requests::LIMIT, 3));
    }
}
