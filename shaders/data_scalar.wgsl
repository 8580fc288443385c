// Access to the window one element at a time, for tiles that begin anywhere.
// The same groups of four as data_vec4.wgsl, so that the kernels are the same.

alias Element = u32;

fn load4(tile: Tile, group: u32) -> vec4<u32> {
    var bits = vec4<u32>();
    let first = tile.start + group * 4u;
    let left = tile.count - group * 4u;
    bits.x = data[first];
    if left > 1u { bits.y = data[first + 1u]; }
    if left > 2u { bits.z = data[first + 2u]; }
    if left > 3u { bits.w = data[first + 3u]; }
    return bits;
}

// A group that lies in the tile as a whole.
fn whole4(tile: Tile, group: u32) -> vec4<u32> {
    let first = tile.start + group * 4u;
    return vec4<u32>(data[first], data[first + 1u], data[first + 2u], data[first + 3u]);
}

fn load1(tile: Tile, index: u32) -> u32 {
    return data[tile.start + index];
}
