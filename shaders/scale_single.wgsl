// Elements multiplied in place, in fewer steps than scaled() takes.

// The factor as an f32, and 2^32 times it.
struct Quick {
    factor: f32,
    larger: f32,
}

// Whether the factor is one for that: it and 2^32 times it are normal numbers, and 2^32 times the bound, which no product
// exceeds, is far from overflow.
fn is_quick(decision: Decision) -> bool {
    return decision.exponent >= -90 && decision.bound < (217u << 23u);
}

fn quick_of(decision: Decision) -> Quick {
    let factor = decision.mantissa + (bitcast<u32>(decision.exponent) << 23u);
    return Quick(bitcast<f32>(factor), bitcast<f32>(factor + (32u << 23u)));
}

// Scales a group that lies in the tile as a whole. A product above 2^-125 is the device's own; of smaller ones, and of
// those that a device would flush or round among subnormals, the one with 2^32 times the factor is rounded right, and
// its exponent tells whether it vanishes.
fn scale_whole4(tile: Tile, group: u32, quick: Quick) {
    let bits = whole4(tile, group);
    let product = bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) * quick.factor);
    let larger = bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) * quick.larger);
    let magnitude = larger & vec4<u32>(MAGNITUDE);
    let sign = bits & vec4<u32>(0x80000000u);
    let small = select(sign, larger - vec4<u32>(32u << 23u), magnitude >= vec4<u32>(33u << 23u));
    store_whole4(tile, group, select(small, product, magnitude >= vec4<u32>(34u << 23u)));
}
