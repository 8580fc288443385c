// A decision applied to a tile: what is clipped or zeroed is written, all else is not.

// Groups first, first + step, … of a tile; those that are not whole come to the first invocation.
fn apply(decision: Decision, tile: Tile, first: u32, step: u32) {
    if (decision.status != CLIPPED) & (decision.status != CUT) & (decision.status != ZEROED) {
        return;
    }
    let whole = whole_groups(tile);
    if !CENTERED && decision.status == CLIPPED && is_quick(decision) {
        let quick = quick_of(decision);
        for (var group = first; group < whole; group += step) {
            scale_whole4(tile, group, quick);
        }
    } else {
        for (var group = first; group < whole; group += step) {
            store_whole4(tile, group, clipped(whole4(tile, group), tile, group, decision));
        }
    }
    if first == 0u {
        for (var group = whole; group < groups(tile); group++) {
            store4(tile, group, clipped(load4(tile, group), tile, group, decision));
        }
    }
}

// What becomes of four elements.
fn clipped(value: vec4<u32>, tile: Tile, group: u32, decision: Decision) -> vec4<u32> {
    if decision.status == CUT {
        return cut(value, decision.bound);
    }
    if CENTERED {
        let center = center4(tile, group, params.tiles_per_row);
        if decision.status == ZEROED {
            return center;
        }
        return vec4<u32>(
            scaled_around(value.x, center.x, decision),
            scaled_around(value.y, center.y, decision),
            scaled_around(value.z, center.z, decision),
            scaled_around(value.w, center.w, decision),
        );
    }
    if decision.status == ZEROED {
        return vec4<u32>();
    }
    return scaled(value, decision);
}
