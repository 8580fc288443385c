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

// Adds the squares of four magnitudes to four sums, each a rounded sum and what rounding lost.
fn add_squares(magnitude: vec4<u32>, sums: ptr<function, vec4<f32>>, lost: ptr<function, vec4<f32>>) {
    // On the bits, since a compiler may reorder multiplications. Subnormals count as 0; what is too
    // large to scale becomes nonsense, but then the span does not use this sum.
    add_scaled_squares(prescaled(magnitude), sums, lost);
}

// Adds the squares of four differences. A difference rounds to x and loses y, so its square is x² + 2xy but
// for y², which is below 2^-48 of it.
fn add_square_differences(
    value: vec4<u32>,
    center: vec4<u32>,
    sums: ptr<function, vec4<f32>>,
    lost: ptr<function, vec4<f32>>,
) {
    let a = bitcast<vec4<f32>>(prescaled(value & vec4<u32>(MAGNITUDE)) | (value & vec4<u32>(0x80000000u)));
    let b = bitcast<vec4<f32>>(prescaled(center & vec4<u32>(MAGNITUDE)) | (~center & vec4<u32>(0x80000000u)));
    // Knuth's TwoSum.
    let x = opaque4(a + b);
    let of_b = opaque4(x - a);
    let y = (a - opaque4(x - of_b)) + (b - of_b);
    *lost += (x + x) * y;
    add_scaled_squares(bitcast<vec4<u32>>(x) & vec4<u32>(MAGNITUDE), sums, lost);
}

fn prescaled(magnitude: vec4<u32>) -> vec4<u32> {
    let normal = magnitude >= vec4<u32>(0x800000u);
    return select(vec4<u32>(), magnitude + vec4<u32>(PRESCALE << 23u), normal);
}

fn add_scaled_squares(bits: vec4<u32>, sums: ptr<function, vec4<f32>>, lost: ptr<function, vec4<f32>>) {
    let x = bitcast<vec4<f32>>(bits);
    let square = opaque4(x * x);
    // Veltkamp's split by masking: both halves have 12 bits, so all their products are exact.
    let head = bitcast<vec4<f32>>(bits & vec4<u32>(0xfffff000u));
    let tail = x - head;
    let square_error = ((head * head - square) + (head + head) * tail) + tail * tail;
    let larger = max(*sums, square);
    let smaller = min(*sums, square);
    let sum = opaque4(larger + smaller);
    let sum_error = smaller - opaque4(sum - larger);
    *lost += sum_error + square_error;
    *sums = sum;
}
