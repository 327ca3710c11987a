//! A component for quite another world: the agent must refuse it by its imports and exports.
#![cfg(target_arch = "wasm32")]

wit_bindgen::generate!({
    inline: "
        package other:place@1.0.0;
        interface door { open: func(name: string) -> u32; }
        world elsewhere {
            import door;
            export run: func() -> u32;
        }
    ",
});

struct Other;

impl Guest for Other {
    fn run() -> u32 {
        other::place::door::open("/etc/shadow")
    }
}

export!(Other);

const TEXT: &[u8] = include_bytes!("../policy.toml");

// The manifest is in order, so that the world is what the agent refuses.
#[used]
#[unsafe(link_section = "palisade:manifest")]
static MANIFEST: [u8; TEXT.len()] = {
    let mut copy = [0; TEXT.len()];
    copy.copy_from_slice(TEXT);
    copy
};
