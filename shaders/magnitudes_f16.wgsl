// The magnitudes of f16 that sums take, by integers.
fn magnitudes(words: vec2<u32>) -> vec4<u32> {
    return widened_magnitudes(words);
}
