//! A reader for the kernel's type information (BTF): offsets of structure members.
//!
//! Invariant: bytes from the kernel never panic the agent; a malformed section is an error.
//! It reads only what sensors need; aya's own reader keeps members private.

use std::collections::HashMap;
use thiserror::Error;

pub(super) const MAGIC: u16 = 0xeb9f;
pub(super) const HEADER_BYTES: usize = 24;

const KIND_INT: u32 = 1;
pub(super) const KIND_POINTER: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
pub(super) const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
pub(super) const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// How deep typedefs, qualifiers and anonymous members may nest.
const MAX_DEPTH: u32 = 32;

/// Why the type information cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// Not a BTF section of this machine's byte order.
    #[error("no BTF data")]
    NotBtf,
    /// A length or offset points outside of the data.
    #[error("BTF data is cut short or damaged at byte {0}")]
    Damaged(usize),
    /// A kind of type that this reader cannot skip.
    #[error("unknown BTF kind {0}")]
    UnknownKind(u32),
}

/// Parsed type information.
#[derive(Debug)]
pub(crate) struct Btf {
    data: Vec<u8>,
    /// Where each type's record starts; type 0 is `void`.
    types: Vec<usize>,
    strings: usize,
    strings_end: usize,
    /// Structures and unions by name.
    structs: HashMap<String, u32>,
    enums: HashMap<String, u32>,
    typedefs: HashMap<String, u32>,
}

impl Btf {
    /// Parses a BTF section.
    pub(crate) fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        if data.len() < HEADER_BYTES || u16::from_le_bytes([data[0], data[1]]) != MAGIC {
            return Err(BtfError::NotBtf);
        }
        let mut btf = Self {
            data,
            types: vec![0],
            strings: 0,
            strings_end: 0,
            structs: HashMap::new(),
            enums: HashMap::new(),
            typedefs: HashMap::new(),
        };
        let header = btf.word(4)? as usize;
        let section = |at: usize| -> Result<(usize, usize), BtfError> {
            let start = header
                .checked_add(btf.word(at)? as usize)
                .ok_or(BtfError::Damaged(at))?;
            let end = start
                .checked_add(btf.word(at + 4)? as usize)
                .ok_or(BtfError::Damaged(at))?;
            if end > btf.data.len() {
                return Err(BtfError::Damaged(at));
            }
            Ok((start, end))
        };
        let (types, types_end) = section(8)?;
        let (strings, strings_end) = section(16)?;
        (btf.strings, btf.strings_end) = (strings, strings_end);

        let mut at = types;
        while at < types_end {
            let id = btf.types.len() as u32;
            let (kind, length) = btf.info(at)?;
            let name = btf.string(btf.word(at)?);
            let table = match kind {
                KIND_STRUCT | KIND_UNION => Some(&mut btf.structs),
                KIND_ENUM => Some(&mut btf.enums),
                KIND_TYPEDEF => Some(&mut btf.typedefs),
                _ => None,
            };
            if let (Some(table), Some(name)) = (table, name) {
                table.entry(name).or_insert(id);
            }
            btf.types.push(at);
            at += 12 + trailing_bytes(kind, length)?;
        }
        Ok(btf)
    }

    /// Offset in bytes of a member, through anonymous members and along a dotted path
    /// (`f_path.dentry`).
    pub(crate) fn member(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structs.get(structure)?;
        let mut offset = 0;
        for name in path.split('.') {
            let (bits, member) = self.find_member(id, name, MAX_DEPTH)?;
            if bits % 8 != 0 {
                return None;
            }
            offset += bits / 8;
            id = member;
        }
        Some(offset)
    }

    /// Value of an enumerator.
    pub(crate) fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        let at = *self.types.get(*self.enums.get(enumeration)? as usize)?;
        let (_, length) = self.info(at).ok()?;
        (0..length as usize)
            .map(|index| at + 12 + 8 * index)
            .find(|entry| self.is_named(*entry, name))
            .and_then(|entry| self.word(entry + 4).ok())
    }

    /// Number of arguments that a tracepoint hands over, from its `btf_trace_*` prototype.
    pub(crate) fn tracepoint_arguments(&self, tracepoint: &str) -> Option<u32> {
        let id = *self.typedefs.get(&format!("btf_trace_{tracepoint}"))?;
        // typedef -> pointer -> prototype
        let pointer = *self.types.get(self.resolve(id)? as usize)?;
        let proto = *self.types.get(self.word(pointer + 8).ok()? as usize)?;
        match self.info(proto).ok()? {
            // The first one is the context that the tracepoint itself was registered with.
            (KIND_FUNC_PROTO, length) => length.checked_sub(1),
            _ => None,
        }
    }

    /// Number of arguments of a function of the kernel.
    pub(crate) fn function_arguments(&self, function: &str) -> Option<u32> {
        let at = self.types.iter().copied().skip(1).find(|at| {
            matches!(self.info(*at), Ok((KIND_FUNC, _))) && self.is_named(*at, function)
        })?;
        let proto = *self.types.get(self.word(at + 8).ok()? as usize)?;
        match self.info(proto).ok()? {
            (KIND_FUNC_PROTO, length) => Some(length),
            _ => None,
        }
    }

    /// Ids and names of the types of one kind, in the order of their ids.
    pub(super) fn of_kind(&self, kind: u32) -> impl Iterator<Item = (u32, &[u8])> {
        let types = self.types.iter().enumerate().skip(1);
        types.filter_map(move |(id, at)| {
            let is_one = matches!(self.info(*at), Ok((found, _)) if found == kind);
            let name = is_one.then(|| self.word(*at).ok())??;
            Some((id as u32, self.string_bytes(name)?))
        })
    }

    fn find_member(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let at = *self.types.get(self.resolve(id)? as usize)?;
        let (kind, length) = self.info(at).ok()?;
        if !matches!(kind, KIND_STRUCT | KIND_UNION) || depth == 0 {
            return None;
        }
        // With the flag set, the upper 8 bits are a bit field's width.
        let with_width = self.word(at + 4).ok()? >> 31 == 1;
        for index in 0..length as usize {
            let member = at + 12 + 12 * index;
            let member_type = self.word(member + 4).ok()?;
            let raw = self.word(member + 8).ok()?;
            let bits = if with_width { raw & 0xff_ffff } else { raw };
            if self.is_named(member, name) {
                return Some((bits, member_type));
            }
            if self.word(member).ok()? == 0
                && let Some((inner, found)) = self.find_member(member_type, name, depth - 1)
            {
                return Some((bits + inner, found));
            }
        }
        None
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Option<u32> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let at = *self.types.get(id as usize)?;
            match self.info(at).ok()?.0 {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = self.word(at + 8).ok()?;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn info(&self, at: usize) -> Result<(u32, u32), BtfError> {
        let info = self.word(at + 4)?;
        Ok(((info >> 24) & 0x1f, info & 0xffff))
    }

    fn word(&self, at: usize) -> Result<u32, BtfError> {
        self.data
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_le_bytes)
            .ok_or(BtfError::Damaged(at))
    }

    fn is_named(&self, at: usize, name: &str) -> bool {
        self.word(at)
            .ok()
            .and_then(|offset| self.string_bytes(offset))
            .is_some_and(|bytes| bytes == name.as_bytes())
    }

    fn string(&self, offset: u32) -> Option<String> {
        let bytes = self.string_bytes(offset)?;
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
    }

    fn string_bytes(&self, offset: u32) -> Option<&[u8]> {
        let start = self.strings.checked_add(offset as usize)?;
        let bytes = self.data.get(start..self.strings_end)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(&bytes[..end])
    }
}

/// Bytes behind the 12 that every type starts with.
fn trailing_bytes(kind: u32, length: u32) -> Result<usize, BtfError> {
    let length = length as usize;
    Ok(match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * length,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * length,
        KIND_POINTER | 7..=KIND_FUNC | 16 | KIND_TYPE_TAG => 0,
        other => return Err(BtfError::UnknownKind(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section with: int, struct inner { u32 x, y; }, struct outer { u32 a; struct { u32 b; };
    /// const inner c; }, enum ids { first, second }.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0inner\0x\0y\0outer\0a\0b\0c\0ids\0first\0second\0";
        let at = |name: &str| {
            let needle = [b"\0", name.as_bytes(), b"\0"].concat();
            let found = strings
                .windows(needle.len())
                .position(|part| part == needle);
            found.map_or(0, |index| index as u32 + 1)
        };
        let info = |kind: u32, length: u32| kind << 24 | length;
        let words = [
            [at("int"), info(KIND_INT, 0), 4, 32].to_vec(),
            [at("inner"), info(KIND_STRUCT, 2), 8].to_vec(),
            [at("x"), 1, 0, at("y"), 1, 32].to_vec(),
            [0, info(KIND_STRUCT, 1), 4, at("b"), 1, 0].to_vec(),
            [0, info(KIND_CONST, 0), 2].to_vec(),
            [at("outer"), info(KIND_STRUCT, 3), 16].to_vec(),
            [at("a"), 1, 0, 0, 3, 32, at("c"), 4, 64].to_vec(),
            [at("ids"), info(KIND_ENUM, 2), 4].to_vec(),
            [at("first"), 0, at("second"), 7].to_vec(),
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut data = vec![0x9f, 0xeb, 1, 0];
        for word in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            data.extend(word.to_le_bytes());
        }
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn members_are_found_through_anonymous_and_qualified_types() {
        let btf = Btf::parse(sample()).expect("parses");
        assert_eq!(btf.member("inner", "y"), Some(4));
        assert_eq!(btf.member("outer", "a"), Some(0));
        assert_eq!(btf.member("outer", "b"), Some(4));
        assert_eq!(btf.member("outer", "c.y"), Some(12));
        assert_eq!(btf.member("outer", "nothing"), None);
        assert_eq!(btf.member("nowhere", "a"), None);
        assert_eq!(btf.enumerator("ids", "second"), Some(7));
    }

    #[test]
    fn damaged_data_is_an_error_and_never_a_panic() {
        let good = sample();
        assert_eq!(
            Btf::parse(b"nothing".to_vec()).err(),
            Some(BtfError::NotBtf)
        );
        for cut in 0..good.len() {
            let _ = Btf::parse(good[..cut].to_vec()).map(|btf| btf.member("outer", "c.y"));
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = Btf::parse(bad)
                    .map(|btf| (btf.member("outer", "c.y"), btf.enumerator("ids", "second")));
            }
        }
    }
}
