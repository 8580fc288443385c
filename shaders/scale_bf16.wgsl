// Bits behind the point of 8 bits times 24, less nine of them.
const SCALED_BITS: i32 = 21;

fn scaled_words(words: vec2<u32>, quick: Quick) -> vec2<u32> {
    let magnitude = magnitudes(words);
    let mantissa = ((magnitude >> vec4<u32>(16u)) & vec4<u32>(0x7fu)) | vec4<u32>(0x80u);
    // 23 bits or 22, which a device does not round unless it is among subnormals, where the product vanishes.
    let integer = (mantissa * vec4<u32>(quick.mantissa)) >> vec4<u32>(9u);
    let power = bitcast<vec4<f32>>(magnitude & vec4<u32>(INFINITY));
    let product = bitcast<vec4<u32>>((vec4<f32>(integer) * quick.scale) * power);
    let halves = select(vec4<u32>(), product, product >= vec4<u32>(0x800000u));
    return (words & vec2<u32>(0x80008000u)) | (halves.xz >> vec2<u32>(16u)) | (halves.yw & vec2<u32>(0xffff0000u));
}
