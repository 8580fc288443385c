// Elements in half precision, bfloat16: the upper half of an f32.

// The values of four halves.
fn widened(half: vec4<u32>) -> vec4<u32> {
    return half << vec4<u32>(16u);
}

// The halves of four values that are halves.
fn narrowed(bits: vec4<u32>) -> vec4<u32> {
    return bits >> vec4<u32>(16u);
}

// Finite magnitudes cut to a half, towards zero.
fn on_grid(magnitude: vec4<u32>) -> vec4<u32> {
    return magnitude & vec4<u32>(0xffff0000u);
}
