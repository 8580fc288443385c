// Access to a window of halves four elements at a time, for tiles that begin at multiples of four elements.
// Lanes past the end of a tile lie in padding: they are masked when read.

alias Element = vec2<u32>;

fn halves4(tile: Tile, group: u32) -> vec2<u32> {
    return data[tile.start / 4u + group];
}

fn half1(tile: Tile, index: u32) -> u32 {
    let at = tile.start + index;
    return (data[at / 4u][(at / 2u) % 2u] >> ((at % 2u) * 16u)) & 0xffffu;
}
