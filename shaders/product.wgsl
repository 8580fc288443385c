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
