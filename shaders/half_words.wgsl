// Access to a window of halves two elements at a time, for tiles that begin at even elements.
// The same groups of four as half_wide.wgsl, so that the kernels are the same.

alias Element = u32;

fn halves4(tile: Tile, group: u32) -> vec2<u32> {
    let first = tile.start / 2u + group * 2u;
    var words = vec2<u32>(data[first], 0u);
    if tile.count - group * 4u > 2u { words.y = data[first + 1u]; }
    return words;
}

fn half1(tile: Tile, index: u32) -> u32 {
    let at = tile.start + index;
    return (data[at / 2u] >> ((at % 2u) * 16u)) & 0xffffu;
}
