// Four f16 times the factor, cut to f16.
fn scaled_words(words: vec2<u32>, quick: Quick) -> vec2<u32> {
    let magnitude = widened_magnitudes(words);
    let mantissa = ((magnitude >> vec4<u32>(13u)) & vec4<u32>(0x3ffu)) | vec4<u32>(0x400u);
    let integer = mantissa * vec4<u32>(quick.mantissa >> 12u)
        + ((mantissa * vec4<u32>(quick.mantissa & 0xfffu)) >> vec4<u32>(12u));
    let sum = bitcast<vec4<u32>>(vec4<f32>(integer)) + (magnitude & vec4<u32>(INFINITY));
    // Of a zero nothing is left. What else has no field left is far below the least half.
    let product = max(sum, vec4<u32>(quick.excess)) - vec4<u32>(quick.excess);
    // Eleven bits are enough. Below 2^-14, m * 2^-24 becomes 2^-15 + m * 2^-25, whose mantissa begins as that of the half; any
    // greater product is not below what it would become, and stays.
    let cut = bitcast<vec4<f32>>(product & vec4<u32>(0xffffe000u));
    let value = bitcast<vec4<u32>>(max(cut, cut * 0.5 + vec4<f32>(0.000030517578125)));
    let halves = (value - vec4<u32>(112u << 23u)) >> vec4<u32>(13u);
    return (words & vec2<u32>(0x80008000u)) | halves.xz | (halves.yw << vec2<u32>(16u));
}
