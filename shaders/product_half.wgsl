// What a decision makes of four elements in half precision, on the bits of their values.

// Magnitudes, as integers, cut to the largest half within the bound; signs stay.
fn cut(bits: vec4<u32>, bound: u32) -> vec4<u32> {
    let finite = on_grid(vec4<u32>(min(bound, GREATEST_HALF)));
    let within = select(finite, vec4<u32>(bound), bound >= INFINITY);
    return (bits & vec4<u32>(0x80000000u)) | min(bits & vec4<u32>(MAGNITUDE), within);
}

// factor * value cut to a half, towards zero; a zero of the same sign below 2^-126.
//
// The 11 bits of a half and the 24 of the factor are multiplied as integers, in two parts, and only what is
// below the half is dropped.
fn scaled(bits: vec4<u32>, decision: Decision) -> vec4<u32> {
    let sign = bits & vec4<u32>(0x80000000u);
    let field = (bits & vec4<u32>(MAGNITUDE)) >> vec4<u32>(23u);
    let mantissa = ((bits >> vec4<u32>(13u)) & vec4<u32>(0x3ffu)) | vec4<u32>(0x400u);
    let factor = (decision.mantissa & 0x7fffffu) | 0x800000u;
    // The product has 34 or 35 bits; 12 of them are dropped at once.
    let product = mantissa * vec4<u32>(factor >> 12u)
        + ((mantissa * vec4<u32>(factor & 0xfffu)) >> vec4<u32>(12u));
    let carry = product >> vec4<u32>(22u);
    let exponent = vec4<i32>(field + carry) + vec4<i32>(decision.exponent);
    let fraction = (product << (vec4<u32>(2u) - carry)) & vec4<u32>(0x7fffffu);
    let normal = (vec4<u32>(exponent) << vec4<u32>(23u)) | fraction;
    let vanishes = exponent < vec4<i32>(1) | field == vec4<u32>(0u);
    return sign | on_grid(select(normal, vec4<u32>(), vanishes));
}

fn product(bits: vec4<u32>, decision: Decision) -> vec4<f32> {
    return bitcast<vec4<f32>>(scaled(bits, decision));
}

fn is_too_small(decision: Decision) -> bool {
    return false;
}
