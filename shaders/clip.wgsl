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
    let index = linear(workgroup, workgroups);
    if index >= arrayLength(&tiles) {
        return;
    }
    let tile = tiles[index];
    if tile.span == NO_SPAN {
        return;
    }
    let decision = decisions[tile.span];
    let groups = (tile.count + 3u) / 4u;
    if decision.status == CLIPPED {
        for (var group = local; group < groups; group += WORKGROUP) {
            let value = load4(tile, group);
            if CENTERED {
                let center = center4(tile, group, params.tiles_per_row);
                store4(tile, group, vec4<u32>(
                    scaled_around(value.x, center.x, decision),
                    scaled_around(value.y, center.y, decision),
                    scaled_around(value.z, center.z, decision),
                    scaled_around(value.w, center.w, decision),
                ));
            } else {
                store4(tile, group, scaled(value, decision));
            }
        }
    } else if decision.status == CUT {
        for (var group = local; group < groups; group += WORKGROUP) {
            store4(tile, group, cut(load4(tile, group), decision.bound));
        }
    } else if decision.status == ZEROED {
        for (var group = local; group < groups; group += WORKGROUP) {
            if CENTERED {
                store4(tile, group, center4(tile, group, params.tiles_per_row));
            } else {
                store4(tile, group, vec4<u32>());
            }
        }
    }
}
