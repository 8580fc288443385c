// Elements in f32, for sums.

const HALVES: bool = false;

// The least magnitude that is not finite.
const NOT_FINITE: u32 = INFINITY;

// Whether Inf and NaN are what they are to `of_any_sign4`, so that a sum is not finite where one of its elements is not.
const SHOWS_NOT_FINITE: bool = true;

// The magnitudes of a group that lies in the tile as a whole.
fn magnitudes4(tile: Tile, group: u32) -> vec4<u32> {
    return whole4(tile, group) & vec4<u32>(MAGNITUDE);
}

// A group of which signs do not matter.
fn of_any_sign4(tile: Tile, group: u32) -> vec4<u32> {
    return whole4(tile, group);
}
