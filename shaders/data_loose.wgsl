// Access to the window four elements at a time, for tiles that begin anywhere. Whole groups are those that begin
// at multiples of four elements of the window; two more groups, which may be empty, have what is left before them and
// behind them: the rest of those four may be another row's.

alias Element = vec4<u32>;

fn first_whole(tile: Tile) -> u32 {
    return (tile.start + 3u) / 4u;
}

fn whole_groups(tile: Tile) -> u32 {
    let end = (tile.start + tile.count) / 4u;
    return end - min(end, first_whole(tile));
}

fn groups(tile: Tile) -> u32 {
    return select(whole_groups(tile) + 2u, 0u, tile.count == 0u);
}

// A group that lies in the tile as a whole.
fn whole4(tile: Tile, group: u32) -> vec4<u32> {
    return data[first_whole(tile) + group];
}

// Of the groups behind the whole ones: the place of its four elements, and which of them are the tile's. Of a tile
// within four elements the second one is empty.
struct Edge {
    index: u32,
    inside: vec4<bool>,
}

fn edge_of(tile: Tile, group: u32) -> Edge {
    let end = tile.start + tile.count;
    let is_behind = group != whole_groups(tile);
    let index = select(tile.start, end, is_behind) / 4u;
    let elements = vec4<u32>(index * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    // A tile that begins at a multiple of four has nothing before its whole groups, and what one within four elements
    // begins with is not behind them as well.
    let exists = select(tile.start % 4u != 0u, (tile.start % 4u == 0u) | (index != tile.start / 4u), is_behind);
    let inside = (elements >= vec4<u32>(tile.start)) & (elements < vec4<u32>(end)) & vec4<bool>(exists);
    return Edge(index, inside);
}

fn load4(tile: Tile, group: u32) -> vec4<u32> {
    if group < whole_groups(tile) {
        return whole4(tile, group);
    }
    // One by one: another workgroup may write the others.
    let edge = edge_of(tile, group);
    var bits = vec4<u32>();
    if edge.inside.x { bits.x = data[edge.index].x; }
    if edge.inside.y { bits.y = data[edge.index].y; }
    if edge.inside.z { bits.z = data[edge.index].z; }
    if edge.inside.w { bits.w = data[edge.index].w; }
    return bits;
}

// Four elements from a multiple of four in the tile on, which are the same coordinates in every row.
fn coordinates4(tile: Tile, group: u32) -> vec4<u32> {
    let left = tile.count - group * 4u;
    var bits = vec4<u32>(load1(tile, group * 4u), 0u, 0u, 0u);
    if left > 1u { bits.y = load1(tile, group * 4u + 1u); }
    if left > 2u { bits.z = load1(tile, group * 4u + 2u); }
    if left > 3u { bits.w = load1(tile, group * 4u + 3u); }
    return bits;
}

fn load1(tile: Tile, index: u32) -> u32 {
    let at = tile.start + index;
    return data[at / 4u][at % 4u];
}
