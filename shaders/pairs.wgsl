// Sums of squares as unevaluated pairs of f32 with a proven error bound (NUMERICS.md, "The fast sum").
//
// A pair need not have the same bits on two devices: only its error bound matters, because what is
// decided from it is certain or else decided from the exact sum. So contraction to fma and any order
// of summation are welcome; deleting the compensation is not, and opaque() prevents that.

struct Pair {
    high: f32,
    low: f32,
}

// Hides from the compiler where a value comes from, so that it cannot simplify (a + b) - a to b.
fn opaque(value: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(value) ^ params.zero);
}

fn opaque4(value: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) ^ vec4<u32>(params.zero));
}

// Dekker's FastTwoSum: exact where |a| >= |b|.
fn renormalise(a: f32, b: f32) -> Pair {
    let sum = opaque(a + b);
    return Pair(sum, b - opaque(sum - a));
}

// The sum of two pairs that are not negative; relative error below 3 * 2^-48.
fn add_pairs(a: Pair, b: Pair) -> Pair {
    let sum = renormalise(max(a.high, b.high), min(a.high, b.high));
    return renormalise(sum.high, sum.low + (a.low + b.low));
}

// Elements are scaled by 2^24 before they are squared: norms above 2^-57 (7e-18) of elements below
// 2^24 (1.7e7) neither over- nor underflow, whatever their number; other rows take the exact sum.
const PRESCALE: u32 = 24u;
// The bits of 2^24: 2^31 such squares, prescaled, stay below 2^127. Of differences, elements are below 2^23.
const LARGEST: u32 = 0x4b800000u;
const LARGEST_OF_DIFFERENCE: u32 = 0x4b000000u;
