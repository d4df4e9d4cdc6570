//! SHA-256 over a sequence of parts.

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// A SHA-256 hasher.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Creates a hasher over no bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes without their length.
    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes);
    }

    /// Adds the length (u64, little-endian) and then the bytes, so that different sequences of
    /// parts have different digests.
    pub fn frame(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// Returns the digest of all bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest::from(<[u8; 32]>::from(self.0.finalize()))
    }
}

impl Digest {
    /// Returns the digest of `bytes`.
    #[must_use]
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of("").to_string(), empty);
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut hasher = Hasher::new();
        hasher.update("a");
        hasher.update("bc");
        assert_eq!(hasher.finish().to_string(), abc);
    }

    #[test]
    fn framed_parts_do_not_run_together() {
        let framed = |parts: [&str; 2]| {
            let mut hasher = Hasher::new();
            parts.iter().for_each(|part| hasher.frame(part));
            hasher.finish()
        };
        assert_ne!(framed(["ab", "c"]), framed(["a", "bc"]));
        let bytes = b"\x02\0\0\0\0\0\0\0ab\x01\0\0\0\0\0\0\0c";
        assert_eq!(framed(["ab", "c"]), Digest::of(bytes));
    }
}
