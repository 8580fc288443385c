// Elements in half precision, IEEE 754 binary16: their bits as those of an f32, and back.
//
// On integers, and products that are exact: unpack2x16float may flush subnormals, and pack2x16float may round in any
// direction.

// The values of four halves; every half is an f32, and NaN keeps its payload.
fn widened(half: vec4<u32>) -> vec4<u32> {
    let sign = (half & vec4<u32>(0x8000u)) << vec4<u32>(16u);
    let magnitude = half & vec4<u32>(0x7fffu);
    // The exponent's bias grows by 112, and by as much again where it is that of Inf and NaN.
    let bias = select(vec4<u32>(112u << 23u), vec4<u32>(224u << 23u), magnitude >= vec4<u32>(0x7c00u));
    let normal = (magnitude << vec4<u32>(13u)) + bias;
    // Subnormals count units of 2^-24, of which none is subnormal as an f32.
    let subnormal = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 5.9604644775390625e-8);
    return sign | select(normal, subnormal, magnitude < vec4<u32>(0x400u));
}

// The halves of four finite values that are halves.
fn narrowed(bits: vec4<u32>) -> vec4<u32> {
    let sign = (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
    let magnitude = bits & vec4<u32>(MAGNITUDE);
    let field = magnitude >> vec4<u32>(23u);
    let normal = (magnitude - vec4<u32>(112u << 23u)) >> vec4<u32>(13u);
    let mantissa = (magnitude & vec4<u32>(0x7fffffu)) | vec4<u32>(0x800000u);
    let subnormal = mantissa >> min(vec4<u32>(126u) - min(field, vec4<u32>(112u)), vec4<u32>(31u));
    return sign | select(normal, subnormal, field < vec4<u32>(113u));
}

// Finite magnitudes below 2^16 cut to a half, towards zero.
fn on_grid(magnitude: vec4<u32>) -> vec4<u32> {
    let field = magnitude >> vec4<u32>(23u);
    // Below 2^-14 units are 2^-24, whatever the exponent.
    let bits = vec4<u32>(13u) + (vec4<u32>(113u) - min(field, vec4<u32>(113u)));
    let cut = magnitude & (vec4<u32>(0xffffffffu) << min(bits, vec4<u32>(23u)));
    return select(cut, vec4<u32>(), field < vec4<u32>(103u));
}
