//! The TLS provider of the process.

/// Chooses the process's TLS provider. Two are in the tree, and without a choice the first TLS
/// connection panics.
pub fn install_crypto() {
    // An error only says that it was installed before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
