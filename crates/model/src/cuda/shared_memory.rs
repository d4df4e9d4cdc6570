//! The shared memory of attention's tiles. `kernels/tiles.cu` has the same numbers.

/// Rows of a tile of queries, and of a tile of keys.
pub(super) const QUERIES: usize = 128;
pub(super) const KEYS: usize = 64;
/// Rows of the other side that are loaded per step.
const STEP: usize = 32;
/// Stages of the copy pipeline.
pub(super) const STAGES: usize = 4;
/// The largest head size that tiles are compiled for.
const LARGEST_TILED_HEAD: usize = 128;

/// What issues a product of the matrix units.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MatrixUnits {
    /// One warp.
    Warp,
    /// Four warps together, as on Hopper.
    Warpgroup,
}

/// Stages of the gradient of queries, which has two tiles of its own.
pub(super) const fn query_stages(units: MatrixUnits) -> usize {
    match units {
        MatrixUnits::Warp => 2,
        MatrixUnits::Warpgroup => 3,
    }
}

/// Bytes of shared memory of a block: its own rows, of each stage two tiles, and two numbers for
/// each row of a stage.
pub(super) const fn tile_bytes(own_rows: usize, stages: usize, head: usize) -> usize {
    (own_rows + stages * 2 * STEP) * head * 2 + stages * 8 * STEP
}

/// The largest shared-memory size of any tile kernel.
pub(super) const fn largest_tile_bytes(units: MatrixUnits) -> usize {
    let queries = tile_bytes(2 * QUERIES, query_stages(units), LARGEST_TILED_HEAD);
    let keys = tile_bytes(2 * KEYS, STAGES, LARGEST_TILED_HEAD);
    if queries > keys { queries } else { keys }
}
