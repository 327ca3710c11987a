//! The bridge between the ABI's plain types and aya's map types.

/// A plain value as aya wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: aya's marker is needed to use ABI types as keys and values of maps, and the orphan rule
// forbids to implement it for them directly. It is sound because `bytemuck::Pod` promises more
// than aya asks for (no padding, every bit pattern valid), and the wrapper is transparent.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}
