//! Builds the guests: a policy that counts numbered records, and what it can be made to do wrong.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

const WIT: &str = include_str!("../../../../policy-sdk/wit/policy.wit");

/// In the second word of a record's body: misbehave now.
pub const POISON: u64 = 0xbad;

/// What a guest looks like.
#[derive(Clone)]
pub struct Guest {
    /// Version in the manifest.
    pub version: &'static str,
    /// Further lines of the manifest's `[policy]` table.
    pub policy: &'static str,
    /// Kinds in the manifest.
    pub kinds: &'static str,
    /// Tables of the manifest.
    pub tables: &'static str,
    /// What `on-batch` does when it meets a poisoned record.
    pub misdeed: &'static str,
    /// What `init` does first.
    pub init: &'static str,
    /// What `restore` does first.
    pub restore: &'static str,
    /// What `checkpoint` does first.
    pub checkpoint: &'static str,
}

/// A guest that counts: each `on-batch` returns an alert about workload (number of records seen
/// so far), of severity info as long as every record's number was one more than the last one's.
/// The state (last number, records, disorder) is handed over.
pub const GOOD: Guest = Guest {
    version: "1.0.0",
    policy: "",
    kinds: "\"exec\"",
    tables: "",
    misdeed: "",
    init: "",
    restore: "",
    checkpoint: "",
};

pub const TRAP: &str = "unreachable";
pub const SPIN: &str = "(loop $for_ever (br $for_ever))";
pub const GROW: &str = "(drop (memory.grow (i32.const 1000)))";
/// A list that begins beyond the end of memory.
pub const GARBAGE: &str = "(i32.store (i32.const 1024) (i32.const 0x7ffffff0))
    (i32.store (i32.const 1028) (i32.const 3)) (return (i32.const 1024))";
/// 64 good requests, as many as a call may return.
pub const MANY: &str = "(i32.store (i32.const 1024) (i32.const 131072))
    (i32.store (i32.const 1028) (i32.const 64)) (return (i32.const 1024))";
/// 65 good requests: one too many.
pub const FLOOD: &str = "(i32.store (i32.const 1024) (i32.const 131072))
    (i32.store (i32.const 1028) (i32.const 65)) (return (i32.const 1024))";
/// A request for a CPU weight of 0.
pub const NONSENSE: &str = "(i32.store8 (i32.const 2024) (i32.const 1))";
/// A request for a kill.
pub const KILL: &str = "(i32.store8 (i32.const 2024) (i32.const 5))";
/// 64 requests that share one reason of 124 KiB, zeros from memory that nothing else uses.
pub const AMPLIFY: &str = "(i32.store (i32.const 2040) (i32.const 135168))
    (i32.store (i32.const 2044) (i32.const 126976))
    (local.set $at (i32.const 131072))
    (loop $copy
      (memory.copy (local.get $at) (i32.const 2000) (i32.const 56))
      (local.set $at (i32.add (local.get $at) (i32.const 56)))
      (br_if $copy (i32.lt_u (local.get $at) (i32.const 134656))))
    (i32.store (i32.const 1024) (i32.const 131072))
    (i32.store (i32.const 1028) (i32.const 64)) (return (i32.const 1024))";

impl Guest {
    /// The manifest's text.
    pub fn manifest(&self) -> String {
        let Self {
            version,
            policy,
            kinds,
            tables,
            ..
        } = self;
        let unless = |key: &str, line| if policy.contains(key) { "" } else { line };
        format!(
            "[policy]\nname = \"counter\"\nversion = \"{version}\"\n{}{}{policy}\n\
             [subscribe]\nkinds = [{kinds}]\n{tables}\n",
            unless("abi =", "abi = 1\n"),
            unless("powers =", "powers = [\"alert\"]\n"),
        )
    }

    /// The core module.
    pub fn module(&self) -> Vec<u8> {
        let one = "\\01\\00\\00\\00\\00\\00\\00\\00\\07\\00\\00\\00\\00\\00\\00\\00".to_owned()
            + &"\\00".repeat(40);
        let Self {
            misdeed,
            init,
            restore,
            checkpoint,
            ..
        } = self;
        let text = COUNTER
            .replace("$MISDEED", misdeed)
            .replace("$INIT", init)
            .replace("$RESTORE", restore)
            .replace("$CHECKPOINT", checkpoint)
            .replace("$FLOOD", &one.repeat(65));
        wat::parse_str(text).unwrap()
    }

    /// The component, without a manifest.
    pub fn bare(&self) -> Vec<u8> {
        component(self.module(), WIT, "policy")
    }

    /// The component.
    pub fn build(&self) -> Vec<u8> {
        with_manifest(self.bare(), self.manifest().as_bytes())
    }
}

/// Makes a component for `world` of a core module.
pub fn component(mut module: Vec<u8>, wit: &str, world: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .unwrap()
        .encode()
        .unwrap()
}

/// Appends the custom section with a manifest.
pub fn with_manifest(mut wasm: Vec<u8>, text: &[u8]) -> Vec<u8> {
    let name = crate::policy::MANIFEST_SECTION.as_bytes();
    let mut section = Vec::new();
    leb(&mut section, name.len());
    section.extend_from_slice(name);
    section.extend_from_slice(text);
    wasm.push(0);
    leb(&mut wasm, section.len());
    wasm.extend_from_slice(&section);
    wasm
}

fn leb(into: &mut Vec<u8>, mut number: usize) {
    while number >= 128 {
        into.push((number & 127) as u8 | 128);
        number >>= 7;
    }
    into.push(number as u8);
}

// Memory: 16 last number, 24 records, 32 disorder; 1024 return area; 2000 the request;
// 65536 what the host hands over; 131072 the flood.
const COUNTER: &str = r#"(module
  (memory (export "memory") 4)
  (global $free (mut i32) (i32.const 65536))
  (data (i32.const 2000) "\01")
  (data (i32.const 2500) "counted")
  (data (i32.const 131072) "$FLOOD")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (func $ok (result i32)
    (global.set $free (i32.const 65536))
    (i32.store8 (i32.const 1024) (i32.const 0))
    (i32.const 1024))
  (func $no (result i32)
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store (i32.const 1028) (i32.const 2500))
    (i32.store (i32.const 1032) (i32.const 7))
    (i32.const 1024))
  (func (export "init") (param i32 i32) (result i32)
    $INIT
    (call $ok))
  (func (export "on-batch") (param $now i64) (param $at i32) (param $count i32) (result i32)
    (local $end i32)
    (global.set $free (i32.const 65536))
    (i64.store (i32.const 2000) (i64.const 1))
    (i64.store (i32.const 2016) (i64.const 0))
    (i64.store (i32.const 2024) (i64.const 0))
    (i32.store (i32.const 2036) (i32.const 0))
    (i32.store (i32.const 2040) (i32.const 2500))
    (i32.store (i32.const 2044) (i32.const 7))
    (local.set $end (i32.add (local.get $at) (i32.shl (local.get $count) (i32.const 3))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (if (i32.eq (i32.load16_u (i32.add (local.get $at) (i32.const 32))) (i32.const 1))
          (then (local.set $at (i32.add (local.get $at) (i32.const 64))) (br $next)))
        (if (i64.ne (i64.load (i32.add (local.get $at) (i32.const 40)))
                    (i64.add (i64.load (i32.const 16)) (i64.const 1)))
          (then (i64.store (i32.const 32) (i64.const 1))))
        (i64.store (i32.const 16) (i64.load (i32.add (local.get $at) (i32.const 40))))
        (i64.store (i32.const 24) (i64.add (i64.load (i32.const 24)) (i64.const 1)))
        (if (i64.eq (i64.load (i32.add (local.get $at) (i32.const 48))) (i64.const 0xbad))
          (then $MISDEED))
        (local.set $at (i32.add (local.get $at) (i32.const 64)))
        (br $next)))
    ;; target workload(records), action alert or what a misdeed made of it
    (i64.store (i32.const 2008) (i64.load (i32.const 24)))
    ;; severity: critical after disorder
    (i32.store8 (i32.const 2036)
      (i32.shl (i32.wrap_i64 (i64.load (i32.const 32))) (i32.const 1)))
    (i32.store (i32.const 1024) (i32.const 2000))
    (i32.store (i32.const 1028) (i32.const 1))
    (i32.const 1024))
  (func (export "on-tick") (param i64) (result i32)
    (i32.store (i32.const 1024) (i32.const 2000))
    (i32.store (i32.const 1028) (i32.const 0))
    (i32.const 1024))
  (func (export "checkpoint") (result i32)
    $CHECKPOINT
    (i32.store (i32.const 1024) (i32.const 16))
    (i32.store (i32.const 1028) (i32.const 24))
    (i32.const 1024))
  (func (export "restore") (param $version i32) (param $at i32) (param $len i32) (result i32)
    $RESTORE
    (memory.copy (i32.const 16) (local.get $at) (i32.const 24))
    (call $ok)))
"#;
