//! Offsets of kernel structure members, by group: a probe whose group is incomplete is refused.

use super::btf::Btf;
use palisade_abi::Offsets;
use serde::Serialize;
use std::fmt;

/// What a group of members is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Whose event it is. Every program needs it.
    Identity,
    /// From a descriptor to the file.
    Files,
    /// End of a process.
    Exit,
    /// Scheduling.
    Sched,
    /// Arguments of the system call under way.
    Registers,
    /// What a process executes.
    Executable,
    /// Which sockets are TCP's.
    Sockets,
    /// Which sockets are a server's.
    Ports,
    /// Segments of a packet.
    Segments,
    /// PCI address of a device.
    Pci,
}

/// A member that the kernel's type information does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What it is needed for.
    pub group: Group,
    /// `structure.member`
    pub member: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.member)
    }
}

/// Reads offsets one by one and keeps what is missing.
pub(super) struct Reader<'a> {
    btf: &'a Btf,
    pub missing: Vec<Missing>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(btf: &'a Btf) -> Self {
        Self {
            btf,
            missing: Vec::new(),
        }
    }

    /// The member's offset; 0 if there is none.
    pub(super) fn member(&mut self, group: Group, structure: &str, path: &str) -> u32 {
        self.btf.member(structure, path).unwrap_or_else(|| {
            self.note(group, format!("{structure}.{path}"));
            0
        })
    }

    fn note(&mut self, group: Group, member: String) {
        self.missing.push(Missing { group, member });
    }
}

/// Reads all offsets. `cgroup_v2`: workloads are named by the v2 hierarchy, else by v1's `cpu`.
/// A member that was not found is 0 and listed.
pub(super) fn resolve(btf: &Btf, cgroup_v2: bool) -> (Offsets, Vec<Missing>) {
    use Group::{Exit, Files, Identity};
    let mut read = Reader::new(btf);
    let cset_entry = if cgroup_v2 {
        read.member(Identity, "css_set", "dfl_cgrp")
    } else {
        let subsys = read.member(Identity, "css_set", "subsys");
        let cpu = btf.enumerator("cgroup_subsys_id", "cpu_cgrp_id");
        if cpu.is_none() {
            read.note(Identity, "cgroup_subsys_id.cpu_cgrp_id".into());
        }
        subsys + 8 * cpu.unwrap_or(0)
    };
    let offsets = Offsets {
        task_files: read.member(Files, "task_struct", "files"),
        files_fdt: read.member(Files, "files_struct", "fdt"),
        fdt_fd: read.member(Files, "fdtable", "fd"),
        fdt_max_fds: read.member(Files, "fdtable", "max_fds"),
        file_inode: read.member(Files, "file", "f_inode"),
        file_dentry: read.member(Files, "file", "f_path.dentry"),
        dentry_name: read.member(Files, "dentry", "d_name.name"),
        dentry_name_len: read.member(Files, "dentry", "d_name.len"),
        inode_rdev: read.member(Files, "inode", "i_rdev"),
        inode_mode: read.member(Files, "inode", "i_mode"),
        inode_size: read.member(Files, "inode", "i_size"),
        inode_ino: read.member(Files, "inode", "i_ino"),
        inode_sb: read.member(Files, "inode", "i_sb"),
        sb_dev: read.member(Files, "super_block", "s_dev"),
        task_leader: read.member(Identity, "task_struct", "group_leader"),
        task_start: read.member(Identity, "task_struct", "start_boottime"),
        task_tgid: read.member(Identity, "task_struct", "tgid"),
        task_pid: read.member(Identity, "task_struct", "pid"),
        task_parent: read.member(Identity, "task_struct", "real_parent"),
        task_cgroups: read.member(Identity, "task_struct", "cgroups"),
        cset_entry,
        cset_is_css: u32::from(!cgroup_v2),
        css_cgroup: read.member(Identity, "cgroup_subsys_state", "cgroup"),
        css_parent: read.member(Identity, "cgroup_subsys_state", "parent"),
        cgroup_self: read.member(Identity, "cgroup", "self"),
        cgroup_kn: read.member(Identity, "cgroup", "kn"),
        kn_id: read.member(Identity, "kernfs_node", "id"),
        task_exit_code: read.member(Exit, "task_struct", "exit_code"),
        task_signal: read.member(Exit, "task_struct", "signal"),
        signal_live: read.member(Exit, "signal_struct", "live"),
        signal_group_exit_code: read.member(Exit, "signal_struct", "group_exit_code"),
    };
    (offsets, read.missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_types_have_every_member() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED this_kernels_types_have_every_member: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(data).expect("the kernel's own BTF parses");
        for cgroup_v2 in [false, true] {
            let (offsets, missing) = resolve(&btf, cgroup_v2);
            assert_eq!(missing, []);
            assert_ne!(offsets.task_cgroups, 0);
            assert_ne!(offsets.dentry_name, offsets.dentry_name_len);
        }
    }
}
