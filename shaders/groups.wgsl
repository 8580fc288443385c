// A tile's elements in groups of four from its first one on; the last group may be fewer.

fn whole_groups(tile: Tile) -> u32 {
    return tile.count / 4u;
}

fn groups(tile: Tile) -> u32 {
    return (tile.count + 3u) / 4u;
}

// The elements of a group, which has the same coordinates in every row.
fn coordinates4(tile: Tile, group: u32) -> vec4<u32> {
    return load4(tile, group);
}
