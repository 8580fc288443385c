// Four bf16 times the factor, cut to bf16.
fn scaled_words(words: vec2<u32>, quick: Quick) -> vec2<u32> {
    let magnitude = magnitudes(words);
    let mantissa = ((magnitude >> vec4<u32>(16u)) & vec4<u32>(0x7fu)) | vec4<u32>(0x80u);
    let integer = (mantissa * vec4<u32>(quick.mantissa)) >> vec4<u32>(9u);
    let product = bitcast<vec4<u32>>(vec4<f32>(integer)) + (magnitude & vec4<u32>(INFINITY));
    // Of zeros and subnormals too, what has no field left vanishes.
    let remains = product >= vec4<u32>(quick.excess + 0x800000u);
    let halves = select(vec4<u32>(), product - vec4<u32>(quick.excess), remains);
    return (words & vec2<u32>(0x80008000u)) | (halves.xz >> vec2<u32>(16u)) | (halves.yw & vec2<u32>(0xffff0000u));
}
