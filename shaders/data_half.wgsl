// Elements in half precision as the kernels see them: the bits of the same values as f32.

const HALVES: bool = true;

fn load4(tile: Tile, group: u32) -> vec4<u32> {
    let past = vec4<u32>(group * 4u) + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(tile.count);
    return select(whole4(tile, group), vec4<u32>(), past);
}

// A group that lies in the tile as a whole, or whose elements past it are not looked at.
fn whole4(tile: Tile, group: u32) -> vec4<u32> {
    return widened(halves4(tile, group));
}

// The magnitudes of a group that lies in the tile as a whole, for sums: those from NOT_FINITE on are of Inf or NaN.
fn magnitudes4(tile: Tile, group: u32) -> vec4<u32> {
    return magnitudes(halves4(tile, group));
}

// The same where signs do not matter; Inf and NaN are what they are, if SHOWS_NOT_FINITE.
fn of_any_sign4(tile: Tile, group: u32) -> vec4<u32> {
    return of_any_sign(halves4(tile, group));
}

fn load1(tile: Tile, index: u32) -> u32 {
    return widened(vec2<u32>(half1(tile, index), 0u)).x;
}
