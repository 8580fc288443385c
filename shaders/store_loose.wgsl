// Groups that are not whole are written one element at a time, because the others may be another workgroup's. WGSL would let
// such a write touch the whole vector; `Tuning::loose` is for devices where it does not.
fn store4(tile: Tile, group: u32, bits: vec4<u32>) {
    if group < whole_groups(tile) {
        store_whole4(tile, group, bits);
        return;
    }
    let edge = edge_of(tile, group);
    if edge.inside.x { data[edge.index].x = bits.x; }
    if edge.inside.y { data[edge.index].y = bits.y; }
    if edge.inside.z { data[edge.index].z = bits.z; }
    if edge.inside.w { data[edge.index].w = bits.w; }
}

// A group that lies in the tile as a whole.
fn store_whole4(tile: Tile, group: u32, bits: vec4<u32>) {
    data[first_whole(tile) + group] = bits;
}
