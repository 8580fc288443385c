// The magnitudes of f16 that sums take, by integers: those of Inf and NaN as if they were numbers.
const SHOWS_NOT_FINITE: bool = false;

fn magnitudes(words: vec2<u32>) -> vec4<u32> {
    return widened_magnitudes(words);
}

fn of_any_sign(words: vec2<u32>) -> vec4<u32> {
    return widened_magnitudes(words);
}
