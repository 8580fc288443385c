// The centre that rows are clipped around.

// The first coordinate of each tile of a row; behind them the centre, where there is one.
@group(0) @binding(16) var<storage, read> starts_and_center: array<u32>;

// Four elements of the centre, beside those that load4 gives.
fn center4(tile: Tile, group: u32, tiles_per_row: u32) -> vec4<u32> {
    let first = tiles_per_row + starts_and_center[tile.slot % tiles_per_row] + group * 4u;
    let left = tile.count - group * 4u;
    var bits = vec4<u32>(starts_and_center[first], 0u, 0u, 0u);
    if left > 1u { bits.y = starts_and_center[first + 1u]; }
    if left > 2u { bits.z = starts_and_center[first + 2u]; }
    if left > 3u { bits.w = starts_and_center[first + 3u]; }
    return bits;
}
