// What a decision makes of four elements, on their bits.

// Magnitudes, as integers, cut to the bound; signs stay.
fn cut(bits: vec4<u32>, bound: u32) -> vec4<u32> {
    return (bits & vec4<u32>(0x80000000u)) | min(bits & vec4<u32>(MAGNITUDE), vec4<u32>(bound));
}

// factor * value, rounded to nearest even; a zero of the same sign where that would be subnormal.
//
// Mantissas are multiplied in [1, 4), where no device flushes or overflows and a single product is
// correctly rounded; exponents are added as integers.
fn scaled(bits: vec4<u32>, decision: Decision) -> vec4<u32> {
    let sign = bits & vec4<u32>(0x80000000u);
    let field = (bits & vec4<u32>(MAGNITUDE)) >> vec4<u32>(23u);
    let mantissa = bitcast<vec4<f32>>((bits & vec4<u32>(0x7fffffu)) | vec4<u32>(0x3f800000u));
    let product = bitcast<vec4<u32>>(mantissa * bitcast<f32>(decision.mantissa));
    let exponent = vec4<i32>(field + (product >> vec4<u32>(23u))) + vec4<i32>(decision.exponent - 127);
    let normal = (vec4<u32>(exponent) << vec4<u32>(23u)) | (product & vec4<u32>(0x7fffffu));
    let vanishes = exponent < vec4<i32>(1) | field == vec4<u32>(0u);
    return sign | select(normal, vec4<u32>(), vanishes);
}

// factor * value as the device has it: what scaled() gives, but for less than 2^-125 where that is subnormal or a zero.
fn product(bits: vec4<u32>, decision: Decision) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits) * bitcast<f32>(decision.mantissa + (bitcast<u32>(decision.exponent) << 23u));
}

// Whether the factor is no normal number, so that product() is of no use.
fn is_too_small(decision: Decision) -> bool {
    return decision.status == CLIPPED && decision.exponent < -126;
}

// Whether scaled_quickly() may take the factor: it and 2^32 times it are normal numbers, and 2^32 times the bound,
// which no product exceeds, is far from overflow.
fn is_quick(decision: Decision) -> bool {
    return decision.exponent >= -90 && decision.bound < (217u << 23u);
}

// The factor as an f32, and 2^32 times it.
fn quick_factors(decision: Decision) -> vec2<f32> {
    let factor = decision.mantissa + (bitcast<u32>(decision.exponent) << 23u);
    return vec2<f32>(bitcast<f32>(factor), bitcast<f32>(factor + (32u << 23u)));
}

// What scaled() gives, in fewer steps. A product above 2^-125 is the device's own; of smaller ones, and of those
// that a device would flush or round among subnormals, the one with 2^32 times the factor is rounded right, and
// its exponent tells whether it vanishes.
fn scaled_quickly(bits: vec4<u32>, factors: vec2<f32>) -> vec4<u32> {
    let product = bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) * factors.x);
    let larger = bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) * factors.y);
    let magnitude = larger & vec4<u32>(MAGNITUDE);
    let sign = bits & vec4<u32>(0x80000000u);
    let small = select(sign, larger - vec4<u32>(32u << 23u), magnitude >= vec4<u32>(33u << 23u));
    return select(small, product, magnitude >= vec4<u32>(34u << 23u));
}
