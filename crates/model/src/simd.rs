//! Runs loops compiled for AVX2 where the machine has it.

use pulp::{Simd, WithSimd};

/// Runs an operation or a closure; what it inlines is compiled for AVX2 too.
#[inline(always)]
pub(crate) fn run<Op: WithSimd>(op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(v3) = pulp::x86::V3::try_new() {
        return Simd::vectorize(v3, op);
    }
    Simd::vectorize(pulp::Scalar, op)
}
