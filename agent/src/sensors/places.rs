//! What is kept of the kernel's types once the offsets are known: where programs can be attached by type.
//!
//! Attaching by type takes a type's id. The kernel's own type information is megabytes, and tens of megabytes once
//! aya has read it; here are the few dozen ids that the hooks may ask for.

use super::btf::{Btf, HEADER_BYTES, KIND_FUNC, KIND_POINTER, KIND_TYPEDEF, MAGIC};
use super::hooks::{self, Rung};
use std::collections::BTreeSet;

/// Places of the hooks' rungs that the kernel has, in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<Place>);

#[derive(Debug, PartialEq, Eq)]
struct Place {
    id: u32,
    kind: u32,
    name: String,
}

impl Places {
    /// Looks up whatever a hook may be attached to.
    pub(super) fn find(types: &Btf) -> Self {
        let wanted = hooks::all().flat_map(|hook| hook.rungs);
        Self::named(types, &wanted.copied().filter_map(asked_by_type).collect())
    }

    fn named(types: &Btf, wanted: &BTreeSet<(u32, String)>) -> Self {
        let mut found = Vec::new();
        for kind in [KIND_TYPEDEF, KIND_FUNC] {
            for (id, name) in types.of_kind(kind) {
                let Ok(name) = std::str::from_utf8(name) else {
                    continue;
                };
                let place = (kind, name.to_owned());
                if wanted.contains(&place) {
                    let (kind, name) = place;
                    found.push(Place { id, kind, name });
                }
            }
        }
        found.sort_unstable_by_key(|place| place.id);
        Self(found)
    }

    /// A BTF section in which they have their ids and nothing else has a name.
    pub(super) fn section(&self) -> Vec<u8> {
        let mut types = Vec::new();
        let mut strings = vec![0];
        let mut next = 1;
        for place in &self.0 {
            // Pointers to void fill the gaps.
            for _ in next..place.id {
                types.extend(record(0, KIND_POINTER));
            }
            types.extend(record(strings.len() as u32, place.kind));
            strings.extend(place.name.as_bytes());
            strings.push(0);
            next = place.id + 1;
        }
        let (types_bytes, strings_bytes) = (types.len() as u32, strings.len() as u32);
        let mut section = Vec::with_capacity(HEADER_BYTES + types.len() + strings.len());
        section.extend(MAGIC.to_le_bytes());
        // Version 1, no flags.
        section.extend([1, 0]);
        for word in [
            HEADER_BYTES as u32,
            0,
            types_bytes,
            types_bytes,
            strings_bytes,
        ] {
            section.extend(word.to_le_bytes());
        }
        section.extend(types);
        section.extend(strings);
        section
    }
}

/// The type whose id is asked for when a rung is attached, as aya asks for it: its kind and its name.
fn asked_by_type(rung: Rung) -> Option<(u32, String)> {
    match rung {
        Rung::Btf { point, .. } => Some((KIND_TYPEDEF, format!("btf_trace_{point}"))),
        Rung::Fexit { function, .. } | Rung::FentryFexit { function, .. } => {
            Some((KIND_FUNC, function.to_owned()))
        }
        Rung::Lsm { hook, .. } => Some((KIND_FUNC, format!("bpf_lsm_{hook}"))),
        Rung::Raw { .. }
        | Rung::Kretprobe { .. }
        | Rung::Uprobe { .. }
        | Rung::Syscall { .. }
        | Rung::SyscallPair { .. }
        | Rung::Returns { .. } => None,
    }
}

/// A type of a kind that consists of a name and a reference.
fn record(name: u32, kind: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&name.to_le_bytes());
    bytes[4..8].copy_from_slice(&(kind << 24).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_holds_the_places_under_their_ids_and_nothing_else() {
        let place = |id, kind, name: &str| Place {
            id,
            kind,
            name: name.to_owned(),
        };
        let places = Places(vec![
            place(1, KIND_FUNC, "first"),
            place(7, KIND_TYPEDEF, "btf_trace_exec"),
            place(9, KIND_FUNC, "last"),
        ]);
        let section = places.section();
        let read = Btf::parse(section.clone()).expect("a section");
        let named = |kind| -> Vec<(u32, String)> {
            read.of_kind(kind)
                .map(|(id, name)| (id, String::from_utf8_lossy(name).into_owned()))
                .collect()
        };
        assert_eq!(named(KIND_TYPEDEF), [(7, "btf_trace_exec".to_owned())]);
        let functions = [(1, "first".to_owned()), (9, "last".to_owned())];
        assert_eq!(named(KIND_FUNC), functions);
        assert_eq!(read.of_kind(KIND_POINTER).count(), 6);
        // The reader that attaching uses finds the same.
        let aya = aya::Btf::parse(&section, aya::Endianness::default()).expect("a section");
        let id = |name, kind| aya.id_by_type_name_kind(name, kind).ok();
        use aya_obj::btf::BtfKind;
        assert_eq!(id("btf_trace_exec", BtfKind::Typedef), Some(7));
        assert_eq!(id("last", BtfKind::Func), Some(9));
        assert_eq!(id("none", BtfKind::Func), None);
    }

    #[test]
    fn this_kernel_has_the_places_that_its_own_types_name() {
        let Ok(data) = std::fs::read(super::super::load::BTF_PATH) else {
            eprintln!(
                "SKIPPED this_kernel_has_the_places_that_its_own_types_name: no BTF on this kernel"
            );
            return;
        };
        let types = Btf::parse(data.clone()).expect("the kernel's own BTF parses");
        let places = Places::find(&types);
        let theirs = aya::Btf::parse(&data, aya::Endianness::default()).expect("BTF");
        let ours =
            aya::Btf::parse(&places.section(), aya::Endianness::default()).expect("a section");
        use aya_obj::btf::BtfKind;
        let mut had = 0;
        for rung in hooks::all().flat_map(|hook| hook.rungs) {
            let Some((kind, name)) = asked_by_type(*rung) else {
                continue;
            };
            let kind = match kind {
                KIND_FUNC => BtfKind::Func,
                _ => BtfKind::Typedef,
            };
            let id = |btf: &aya::Btf| btf.id_by_type_name_kind(&name, kind).ok();
            assert_eq!(id(&ours), id(&theirs), "{name}");
            had += usize::from(id(&ours).is_some());
        }
        assert!(had > 10, "{places:?}");
    }

    /// Whatever is attached by a type's id must be asked for here, or it is absent everywhere.
    #[test]
    fn every_rung_that_is_attached_by_type_is_known() {
        use super::super::Way;
        for rung in hooks::all().flat_map(|hook| hook.rungs) {
            let by_type = matches!(rung.way(), Way::Btf | Way::Fexit | Way::Lsm);
            assert_eq!(asked_by_type(*rung).is_some(), by_type, "{}", rung.place());
        }
    }
}
