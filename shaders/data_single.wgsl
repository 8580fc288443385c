// Elements in f32, for sums.

const HALVES: bool = false;

// The least magnitude that is not finite.
const NOT_FINITE: u32 = INFINITY;

// The magnitudes of a group that lies in the tile as a whole.
fn magnitudes4(tile: Tile, group: u32) -> vec4<u32> {
    return whole4(tile, group) & vec4<u32>(MAGNITUDE);
}
