fn store4(tile: Tile, group: u32, bits: vec4<u32>) {
    let first = tile.start + group * 4u;
    let left = tile.count - group * 4u;
    data[first] = bits.x;
    if left > 1u { data[first + 1u] = bits.y; }
    if left > 2u { data[first + 2u] = bits.z; }
    if left > 3u { data[first + 3u] = bits.w; }
}

// A group that lies in the tile as a whole.
fn store_whole4(tile: Tile, group: u32, bits: vec4<u32>) {
    let first = tile.start + group * 4u;
    data[first] = bits.x;
    data[first + 1u] = bits.y;
    data[first + 2u] = bits.z;
    data[first + 3u] = bits.w;
}
