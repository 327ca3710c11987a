//! What follows the last dot of a file's name, without a branch for each byte: the verifier follows each of them.

use crate::MODEL_SUFFIX_BYTES;

/// The end of a name: what is behind the last dot of its last [`MODEL_SUFFIX_BYTES`] bytes, at the end, with NULs in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suffix {
    /// The first and the second half, each as eight bytes in the order of memory, read as a little-endian number.
    pub words: [u64; 2],
    /// Bytes behind the dot; [`NO_SUFFIX`] if there is none.
    pub bytes: u32,
}

/// [`Suffix::bytes`] of a name without a dot among the last [`MODEL_SUFFIX_BYTES`].
pub const NO_SUFFIX: u32 = MODEL_SUFFIX_BYTES as u32;

/// The suffix of a name that ends with these two halves, in the order of [`Suffix::words`].
#[inline(always)]
pub const fn behind_the_dot([front, back]: [u64; 2]) -> Suffix {
    let (back_kept, back_bytes) = behind(back);
    if back_bytes < 8 {
        return Suffix {
            words: [0, back_kept],
            bytes: back_bytes,
        };
    }
    let (front_kept, front_bytes) = behind(front);
    Suffix {
        words: [front_kept, back],
        bytes: 8 + front_bytes,
    }
}

/// The bytes behind the last dot of eight, of which the last one is the highest, and how many these are.
#[inline(always)]
const fn behind(word: u64) -> (u64, u32) {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let other = word ^ 0x2e2e_2e2e_2e2e_2e2e;
    // The highest bit of each byte that is a dot, exactly: no carry leaves its byte.
    let dots = !(((other & LOW) + LOW) | other | LOW);
    let bytes = dots.leading_zeros() / 8;
    if bytes == 0 {
        return (0, 0);
    }
    let cut = 64 - 8 * bytes;
    (word >> cut << cut, bytes)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    fn of(end: &[u8; MODEL_SUFFIX_BYTES]) -> (Vec<u8>, u32) {
        let (front, back) = end.split_at(8);
        let word = |half: &[u8]| u64::from_le_bytes(half.try_into().unwrap());
        let suffix = behind_the_dot([word(front), word(back)]);
        (
            suffix
                .words
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect(),
            suffix.bytes,
        )
    }

    /// Byte by byte.
    fn expected(end: &[u8; MODEL_SUFFIX_BYTES]) -> (Vec<u8>, u32) {
        let dot = end.iter().rposition(|byte| *byte == b'.');
        let from = dot.map_or(0, |dot| dot + 1);
        let mut kept = vec![0; from];
        kept.extend(&end[from..]);
        (kept, (MODEL_SUFFIX_BYTES - from) as u32)
    }

    #[test]
    fn a_dot_at_every_place() {
        for at in 0..MODEL_SUFFIX_BYTES {
            let mut end = *b"abcdefghijklmnop";
            end[at] = b'.';
            assert_eq!(of(&end), expected(&end), "{at}");
            // Bytes that differ from a dot by one bit, and one further in front.
            for near in [b'.' ^ 0x80, b'.' ^ 1, b'/', 0, 0xff, b'.'] {
                let mut end = [near; MODEL_SUFFIX_BYTES];
                end[at] = b'.';
                assert_eq!(of(&end), expected(&end), "{at} {near}");
            }
        }
        let none = *b"abcdefghijklmnop";
        assert_eq!(of(&none), (none.to_vec(), NO_SUFFIX));
    }

    #[test]
    fn the_last_dot_counts() {
        assert_eq!(of(b"el.onnx.gguf.bin"), expected(b"el.onnx.gguf.bin"));
        assert_eq!(of(b"safetensors.gguf").1, 4);
        assert_eq!(of(b"model.v1.safeten").1, 7);
        assert_eq!(of(b"...............a").1, 1);
        assert_eq!(of(b"a...............").1, 0);
    }
}
