//! Hashing: parts framed by their lengths, and SHA-256 as hex.

use sha2::{Digest, Sha256};

/// Adds a length (u64, little-endian) and the bytes, so that no two sequences of parts hash the
/// same.
pub(crate) fn frame(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Returns the SHA-256 of bytes as 64 lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
