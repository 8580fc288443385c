// Elements in half precision, bfloat16: the upper half of an f32.

const NOT_FINITE: u32 = INFINITY;

const SHOWS_NOT_FINITE: bool = true;

// The values of the four halves in two words.
fn widened(words: vec2<u32>) -> vec4<u32> {
    return vec4<u32>(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u);
}

fn of_any_sign(words: vec2<u32>) -> vec4<u32> {
    return widened(words);
}

fn magnitudes(words: vec2<u32>) -> vec4<u32> {
    return widened(words) & vec4<u32>(MAGNITUDE);
}

// The halves of four values that are halves.
fn narrowed(bits: vec4<u32>) -> vec2<u32> {
    return (bits.xz >> vec2<u32>(16u)) | bits.yw;
}

// The greatest half that is finite.
const GREATEST_HALF: u32 = 0x7f7f0000u;

// Finite magnitudes cut to a half, towards zero.
fn on_grid(magnitude: vec4<u32>) -> vec4<u32> {
    return magnitude & vec4<u32>(0xffff0000u);
}
