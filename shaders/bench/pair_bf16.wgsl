// Two bfloat16 in a word.
fn widened(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}

// Rounded to nearest, ties to even.
fn narrowed(values: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(values);
    let rounded = bits + vec2<u32>(0x7fffu) + ((bits >> vec2<u32>(16u)) & vec2<u32>(1u));
    return (rounded.x >> 16u) | (rounded.y & 0xffff0000u);
}
