// Stage 3: spans that are clipped are multiplied in place, or moved towards the centre; spans that are zeroed
// get +0, or the centre. Tiles of all other spans leave at once: nothing of them is read or written.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(7) var<storage, read> decisions: array<Decision>;

@compute @workgroup_size(WORKGROUP)
fn clip(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    clip_part(linear(workgroup, workgroups), local, WORKGROUP);
}

// Where every span is one short tile: LANES invocations to each.
@compute @workgroup_size(WORKGROUP)
fn clip_rows(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let first = linear(workgroup, workgroups) * (WORKGROUP / LANES);
    clip_part(first + local / LANES, local % LANES, LANES);
}

// Groups first, first + step, … of a tile; what is left behind its last whole group comes to the first invocation.
fn clip_part(index: u32, first: u32, step: u32) {
    if index >= arrayLength(&tiles) {
        return;
    }
    let tile = tiles[index];
    if tile.span == NO_SPAN {
        return;
    }
    let decision = decisions[tile.span];
    if (decision.status != CLIPPED) & (decision.status != CUT) & (decision.status != ZEROED) {
        return;
    }
    let whole = tile.count / 4u;
    if !CENTERED && decision.status == CLIPPED && is_quick(decision) {
        let factors = quick_factors(decision);
        for (var group = first; group < whole; group += step) {
            store_whole4(tile, group, scaled_quickly(whole4(tile, group), factors));
        }
    } else {
        for (var group = first; group < whole; group += step) {
            store_whole4(tile, group, clipped(whole4(tile, group), tile, group, decision));
        }
    }
    if (first == 0u) & (whole * 4u < tile.count) {
        store4(tile, whole, clipped(load4(tile, whole), tile, whole, decision));
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
