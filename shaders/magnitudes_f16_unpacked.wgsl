// The values of f16 that sums take, by the device's own conversion, where it does not flush subnormals: every half is tried
// before. NaN may lose its payload, of which sums know nothing.
const SHOWS_NOT_FINITE: bool = true;

fn of_any_sign(words: vec2<u32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)));
}

fn magnitudes(words: vec2<u32>) -> vec4<u32> {
    return of_any_sign(words) & vec4<u32>(MAGNITUDE);
}
