// Elements in half precision as the kernels see them: the bits of the same values as f32.

fn load4(tile: Tile, group: u32) -> vec4<u32> {
    let past = vec4<u32>(group * 4u) + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(tile.count);
    return select(whole4(tile, group), vec4<u32>(), past);
}

// A group that lies in the tile as a whole, or whose elements past it are not looked at.
fn whole4(tile: Tile, group: u32) -> vec4<u32> {
    let words = halves4(tile, group);
    return widened(vec4<u32>(words.x & 0xffffu, words.x >> 16u, words.y & 0xffffu, words.y >> 16u));
}

fn load1(tile: Tile, index: u32) -> u32 {
    return widened(vec4<u32>(half1(tile, index))).x;
}
