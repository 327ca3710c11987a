//! What the kernel programs are given when they are loaded: where the members of this kernel's structures are.

use super::{
    btf::Btf,
    cpu_offsets::resolve_cpu,
    net_offsets::{resolve_net, resolve_pci},
    offsets::{self, Missing},
    path::resolve_path,
    pids::resolve_exec,
    reads_offsets::resolve_reads,
    registers::resolve_registers,
};
use aya::EbpfLoader;
use bytemuck::Pod;

/// Global variables of the object, by name, as bytes.
#[derive(Debug, Default)]
pub(super) struct Globals(Vec<(&'static str, Vec<u8>)>);

impl Globals {
    /// All of them, and the members that the kernel lacks.
    pub(super) fn resolve(types: &Btf, cgroup_v2: bool) -> (Self, Vec<Missing>) {
        let (mut all, mut missing) = (Self::default(), Vec::new());
        missing.extend(all.add("OFFSETS", offsets::resolve(types, cgroup_v2)));
        missing.extend(all.add("OFFSETS_SYSCALL", resolve_registers(types)));
        missing.extend(all.add("OFFSETS_CPU", resolve_cpu(types)));
        missing.extend(all.add("OFFSETS_NET", resolve_net(types)));
        missing.extend(all.add("OFFSETS_PCI", resolve_pci(types)));
        missing.extend(all.add("OFFSETS_READS", resolve_reads(types)));
        missing.extend(all.add("OFFSETS_EXEC", resolve_exec(types)));
        missing.extend(all.add("OFFSETS_PATH", resolve_path(types)));
        (all, missing)
    }

    fn add<T: Pod>(
        &mut self,
        name: &'static str,
        (offsets, missing): (T, Vec<Missing>),
    ) -> Vec<Missing> {
        self.0.push((name, bytemuck::bytes_of(&offsets).to_vec()));
        missing
    }

    /// Sets them in the object; one that it lacks fails the load.
    pub(super) fn give_to<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (name, bytes) in &self.0 {
            loader.override_global(name, bytes.as_slice(), true);
        }
    }
}
