// Access to the window four elements at a time, for tiles that begin at multiples of four elements.
// Lanes past the end of a tile lie in padding: they are masked when read and kept when written.

alias Element = vec4<u32>;

fn load4(tile: Tile, group: u32) -> vec4<u32> {
    let bits = data[tile.start / 4u + group];
    let past = vec4<u32>(group * 4u) + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(tile.count);
    return select(bits, vec4<u32>(), past);
}

// A group that lies in the tile as a whole.
fn whole4(tile: Tile, group: u32) -> vec4<u32> {
    return data[tile.start / 4u + group];
}

fn load1(tile: Tile, index: u32) -> u32 {
    let at = tile.start + index;
    return data[at / 4u][at % 4u];
}
