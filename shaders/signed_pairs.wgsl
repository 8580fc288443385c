// Pairs of f32 of either sign, four at a time (pairs.wgsl has those of sums of squares).

struct Pair4 {
    high: vec4<f32>,
    low: vec4<f32>,
}

// Knuth's TwoSum: exact whichever is larger.
fn exact_sum(a: vec4<f32>, b: vec4<f32>) -> Pair4 {
    let sum = opaque4(a + b);
    let of_b = opaque4(sum - a);
    return Pair4(sum, (a - opaque4(sum - of_b)) + (b - of_b));
}

// Dekker's product, split by masking: of 12 bits and 12, all products are exact.
fn exact_product(value: vec4<f32>, by: f32) -> Pair4 {
    let product = opaque4(value * by);
    let head = bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) & vec4<u32>(0xfffff000u));
    let tail = value - head;
    let by_head = bitcast<f32>(bitcast<u32>(by) & 0xfffff000u);
    let by_tail = by - by_head;
    return Pair4(product, ((head * by_head - product) + head * by_tail + tail * by_head) + tail * by_tail);
}

// The sum of two pairs: off by at most 3 * 2^-48 of the sum of their magnitudes.
fn add_signed(high: vec4<f32>, low: vec4<f32>, by_high: vec4<f32>, by_low: vec4<f32>) -> Pair4 {
    let sum = exact_sum(high, by_high);
    return exact_sum(sum.high, sum.low + (low + by_low));
}
