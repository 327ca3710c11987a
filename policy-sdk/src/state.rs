//! A small binary form for [`crate::Policy::checkpoint`]: numbers and lengths in little endian.
//!
//! Reading never panics and never allocates more than the input is long.
//!
//! ```
//! use palisade_policy_sdk::state::{Reader, Writer};
//! let mut out = Writer::default();
//! out.u64(7);
//! out.list([1_u32, 2].iter(), |out, item| out.u32(*item));
//! let bytes = out.into_bytes();
//!
//! let mut from = Reader::new(&bytes);
//! assert_eq!(from.u64(), Some(7));
//! assert_eq!(from.list(8, Reader::u32), Some(vec![1, 2]));
//! assert_eq!(from.u64(), None);
//! ```

/// Writes a state.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    /// 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// A float, bit by bit.
    pub fn f64(&mut self, value: f64) {
        self.u64(value.to_bits());
    }

    /// A length and that many items.
    pub fn list<T>(
        &mut self,
        items: impl ExactSizeIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.u32(items.len() as u32);
        for item in items {
            write(self, item);
        }
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a state. Every method answers `None` where the bytes end early.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// A finite float; `None` for any other.
    pub fn f64(&mut self) -> Option<f64> {
        self.u64()
            .map(f64::from_bits)
            .filter(|value| value.is_finite())
    }

    /// A length of at most `limit`, and that many items.
    pub fn list<T>(
        &mut self,
        limit: usize,
        mut read: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let length = self.u32()? as usize;
        if length > limit || length > self.0.len() {
            return None;
        }
        (0..length).map(|_| read(self)).collect()
    }

    /// Whether everything has been read.
    pub fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_lie_are_refused() {
        assert_eq!(
            Reader::new(&[255, 255, 255, 255, 1]).list(usize::MAX, Reader::u8),
            None
        );
        assert_eq!(Reader::new(&[2, 0, 0, 0, 1, 1]).list(1, Reader::u8), None);
        assert_eq!(Reader::new(&f64::NAN.to_bits().to_le_bytes()).f64(), None);
        let mut reader = Reader::new(&[1]);
        assert_eq!(
            (reader.u32(), reader.u8(), reader.is_at_end()),
            (None, Some(1), true)
        );
    }
}
