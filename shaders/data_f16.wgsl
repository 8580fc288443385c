// Elements in half precision, IEEE 754 binary16: their bits as those of an f32, and back.
//
// On integers, and arithmetic that is exact and meets no subnormal: unpack2x16float may flush subnormals, and
// pack2x16float may round in any direction.

// What the fields of Inf and NaN become where they count as one more exponent.
const NOT_FINITE: u32 = 143u << 23u;

// The values of the four halves in two words; NaN keeps its payload.
fn widened(words: vec2<u32>) -> vec4<u32> {
    let magnitude = widened_magnitudes(words);
    // The exponent of Inf and NaN is f32's, 112 further up.
    let all = select(magnitude, magnitude + vec4<u32>(112u << 23u), magnitude >= vec4<u32>(NOT_FINITE));
    let signs = vec4<u32>(words.x << 16u, words.x, words.y << 16u, words.y) & vec4<u32>(0x80000000u);
    return all | signs;
}

// Magnitudes, those of Inf and NaN as if they were numbers from 2^16 on.
fn widened_magnitudes(words: vec2<u32>) -> vec4<u32> {
    let fields = vec4<u32>(words.x << 13u, words.x >> 3u, words.y << 13u, words.y >> 3u) & vec4<u32>(0xfffe000u);
    // With f32's bias, which is 112 more; a subnormal m * 2^-24 comes out as 2^-15 + m * 2^-25. Twice that less 2^-14
    // is m * 2^-24 again, and of no other half is it less than the half.
    let value = bitcast<vec4<f32>>(fields + vec4<u32>(112u << 23u));
    return bitcast<vec4<u32>>(min(value, (value + value) - vec4<f32>(0.00006103515625)));
}

// The halves of four finite values that are halves.
fn narrowed(bits: vec4<u32>) -> vec2<u32> {
    let sign = (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
    let magnitude = bits & vec4<u32>(MAGNITUDE);
    let field = magnitude >> vec4<u32>(23u);
    let normal = (magnitude - vec4<u32>(112u << 23u)) >> vec4<u32>(13u);
    let mantissa = (magnitude & vec4<u32>(0x7fffffu)) | vec4<u32>(0x800000u);
    let subnormal = mantissa >> min(vec4<u32>(126u) - min(field, vec4<u32>(112u)), vec4<u32>(31u));
    let halves = sign | select(normal, subnormal, field < vec4<u32>(113u));
    return halves.xz | (halves.yw << vec2<u32>(16u));
}

// The greatest half that is finite, as the bits of an f32: 65504.
const GREATEST_HALF: u32 = 0x477fe000u;

// Finite magnitudes below 2^16 cut to a half, towards zero.
fn on_grid(magnitude: vec4<u32>) -> vec4<u32> {
    let field = magnitude >> vec4<u32>(23u);
    // Below 2^-14 units are 2^-24, whatever the exponent.
    let bits = vec4<u32>(13u) + (vec4<u32>(113u) - min(field, vec4<u32>(113u)));
    let cut = magnitude & (vec4<u32>(0xffffffffu) << min(bits, vec4<u32>(23u)));
    return select(cut, vec4<u32>(), field < vec4<u32>(103u));
}
