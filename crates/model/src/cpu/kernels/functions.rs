//! The building blocks of the kernels' loops: branch-free functions of single values, and sums in
//! fixed lanes.

use pulp::Simd;

/// Values per iteration: four vectors of eight. Each vector has its own sum, so that the additions
/// overlap.
const LANES: usize = 32;

/// Eight sums side by side. Operations on whole arrays compile to one vector instruction each; a
/// loop over all lanes does not.
type Eight = [f32; 8];

#[inline(always)]
fn plus(a: Eight, b: Eight) -> Eight {
    std::array::from_fn(|lane| a[lane] + b[lane])
}

/// Σ f(i) over `len` values: eight at a time, and one by one at the end. The order is the same on
/// every machine.
#[inline(always)]
fn total(len: usize, eight: impl Fn(usize) -> Eight, one: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [[0.0; 8]; 4];
    let mut at = 0;
    while at + LANES <= len {
        sums[0] = plus(sums[0], eight(at));
        sums[1] = plus(sums[1], eight(at + 8));
        sums[2] = plus(sums[2], eight(at + 16));
        sums[3] = plus(sums[3], eight(at + 24));
        at += LANES;
    }
    while at + 8 <= len {
        sums[0] = plus(sums[0], eight(at));
        at += 8;
    }
    let sums = plus(plus(sums[0], sums[2]), plus(sums[1], sums[3]));
    let four: [f32; 4] = std::array::from_fn(|lane| sums[lane] + sums[lane + 4]);
    let mut sum = (four[0] + four[2]) + (four[1] + four[3]);
    while at < len {
        sum += one(at);
        at += 1;
    }
    sum
}

#[inline(always)]
fn eight(x: &[f32], at: usize) -> Eight {
    x[at..].first_chunk().copied().unwrap_or_default()
}

/// Σ f(x)
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    total(x.len(), |at| eight(x, at).map(&f), |at| f(x[at]))
}

/// Σ a b, over the shorter length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let product = |at: usize| {
        let (a, b) = (eight(a, at), eight(b, at));
        std::array::from_fn(|lane| a[lane] * b[lane])
    };
    total(a.len().min(b.len()), product, |at| a[at] * b[at])
}

/// Σ a b in the vectors of `simd`, for the hottest loops: four vectors at a time, then one, then
/// single values.
#[inline(always)]
pub(crate) fn dot_in<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let ((a_fours, a), (b_fours, b)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (a, b) in a_fours.iter().zip(b_fours) {
        sums[0] = simd.mul_add_e_f32s(a[0], b[0], sums[0]);
        sums[1] = simd.mul_add_e_f32s(a[1], b[1], sums[1]);
        sums[2] = simd.mul_add_e_f32s(a[2], b[2], sums[2]);
        sums[3] = simd.mul_add_e_f32s(a[3], b[3], sums[3]);
    }
    for (&a, &b) in a.iter().zip(b) {
        sums[0] = simd.mul_add_e_f32s(a, b, sums[0]);
    }
    let (left, right) = (
        simd.add_f32s(sums[0], sums[2]),
        simd.add_f32s(sums[1], sums[3]),
    );
    let mut sum = simd.reduce_sum_f32s(simd.add_f32s(left, right));
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    sum
}

/// Σ a b c, over the length of `a`, which the others have too.
#[inline(always)]
pub(crate) fn triple(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let product = |at: usize| {
        let (a, b, c) = (eight(a, at), eight(b, at), eight(c, at));
        std::array::from_fn(|lane| a[lane] * b[lane] * c[lane])
    };
    total(a.len(), product, |at| a[at] * b[at] * c[at])
}

/// The highest value; minus infinity without values. It ignores NaN, which the sums propagate.
#[inline(always)]
pub(crate) fn highest(x: &[f32]) -> f32 {
    let higher = |a: f32, b: f32| if a > b { a } else { b };
    let mut best = [f32::NEG_INFINITY; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        best = std::array::from_fn(|lane| higher(chunk[lane], best[lane]));
    }
    let rest = rest
        .iter()
        .fold(f32::NEG_INFINITY, |best, &x| higher(x, best));
    best.into_iter().fold(rest, |best, x| higher(x, best))
}

/// eˣ to about one unit in the last place; 0 to 1e-38 below −87, NaN stays NaN.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; eʳ by its series to r⁷ (the rest is below 6e-9), 2ⁿ by the
/// exponent's bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding it rounds to an integer in the low bits.
    const ROUND: f32 = 1.5 * (1 << 23) as f32;
    // ln 2 in two parts. The first has few bits, so that its product with n is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// Exact GELU `x Φ(x)` and its derivative `Φ(x) + x φ(x)`.
///
/// erfc(z) e^(z²) / t with t = 1 / (1 + z / 2) is smooth on t in (0, 1]; the polynomial in 2t − 1
/// is its Chebyshev expansion cut after the tenth degree, relative error 1.2e-8. So Φ is good to a
/// few units in the last place in either tail, and one exponential serves both results.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> (f32, f32) {
    const SERIES: [f32; 11] = [
        5.107_913_6e-1,
        3.435_803e-1,
        1.397_357_3e-1,
        1.822_166_9e-2,
        -1.075_162_6e-2,
        -3.243_452e-3,
        1.529_157_2e-3,
        4.306_705e-4,
        -2.993_827e-4,
        -3.660_188e-5,
        4.216_12e-5,
    ];
    const DENSITY: f32 = 0.398_942_3;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let u = 2.0 * t - 1.0;
    let mut series = SERIES[10];
    for power in (0..10).rev() {
        series = series * u + SERIES[power];
    }
    let bell = exp(-0.5 * x * x);
    let tail = 0.5 * t * series * bell;
    let share = if x < 0.0 { tail } else { 1.0 - tail };
    (x * share, share + x * DENSITY * bell)
}

/// GELU's tanh approximation and its derivative.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> (f32, f32) {
    const ROOT: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
    // (1 + tanh y) / 2 = σ(2 y)
    let share = sigmoid(2.0 * ROOT * (x + CUBE * x * x * x));
    let slope = 2.0 * ROOT * (1.0 + 3.0 * CUBE * x * x);
    (x * share, share + x * share * (1.0 - share) * slope)
}

/// max(x, 0) and its derivative.
#[inline(always)]
pub(crate) fn relu(x: f32) -> (f32, f32) {
    if x > 0.0 { (x, 1.0) } else { (x * 0.0, 0.0) }
}

/// x σ(x) and its derivative.
#[inline(always)]
pub(crate) fn silu(x: f32) -> (f32, f32) {
    let share = sigmoid(x);
    (x * share, share + x * share * (1.0 - share))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(from: f64, to: f64) -> impl Iterator<Item = f64> {
        (0..=20_000).map(move |i| f64::from((from + (to - from) * f64::from(i) / 20_000.0) as f32))
    }

    #[test]
    fn exp_is_good_to_the_last_places() {
        for x in grid(-87.0, 88.0) {
            let (got, want) = (f64::from(exp(x as f32)), x.exp());
            assert!(
                (got / want - 1.0).abs() < 2.5e-7,
                "exp({x}) = {got}, not {want}"
            );
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    /// Φ by its continued fraction or its series, in f64.
    fn normal(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let z = x.abs();
        let tail = if z < 3.0 {
            let (mut term, mut series) = (z, z);
            for n in 1..200 {
                term *= z * z / f64::from(2 * n + 1);
                series += term;
            }
            0.5 - density * series
        } else {
            density / (1..400).rev().fold(z, |f, k| z + f64::from(k) / f)
        };
        if x < 0.0 { tail } else { 1.0 - tail }
    }

    #[test]
    fn gelu_is_the_exact_one() {
        for x in grid(-9.0, 9.0) {
            let (value, slope) = gelu(x as f32);
            let want = x * normal(x);
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            // The exponential of a rounded square limits the far tail.
            assert!(
                (f64::from(value) - want).abs() <= 4e-6 * want.abs() + 1e-12,
                "gelu({x}) = {value}, not {want}"
            );
            assert!(
                (f64::from(slope) - (normal(x) + x * density)).abs() < 6e-7,
                "slope at {x}"
            );
        }
    }

    #[test]
    fn slopes_are_derivatives() {
        for f in [gelu, gelu_tanh, silu] {
            for x in grid(-5.0, 5.0).step_by(97) {
                let step = 1e-2;
                let rise = f64::from(f((x + step) as f32).0) - f64::from(f((x - step) as f32).0);
                assert!(
                    (rise / (2.0 * step) - f64::from(f(x as f32).1)).abs() < 1e-4,
                    "at {x}"
                );
            }
        }
        assert_eq!(relu(2.0), (2.0, 1.0));
        assert_eq!(relu(-2.0).1, 0.0);
    }

    #[test]
    fn sums_take_the_rest_after_the_lanes() {
        for len in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let squares: f32 = x.iter().map(|x| x * x).sum();
            assert_eq!(sum(&x, |x| x), x.iter().sum::<f32>());
            assert_eq!(dot(&x, &x), squares);
            assert_eq!(dot_in(pulp::Scalar, &x, &x), squares);
            assert_eq!(triple(&x, &x, &vec![1.0; len]), squares);
            assert_eq!(highest(&x), x.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
}
