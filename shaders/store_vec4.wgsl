fn store4(tile: Tile, group: u32, bits: vec4<u32>) {
    let index = tile.start / 4u + group;
    let past = vec4<u32>(group * 4u) + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(tile.count);
    if past.w {
        data[index] = select(bits, data[index], past);
    } else {
        data[index] = bits;
    }
}

// A group that lies in the tile as a whole.
fn store_whole4(tile: Tile, group: u32, bits: vec4<u32>) {
    data[tile.start / 4u + group] = bits;
}
