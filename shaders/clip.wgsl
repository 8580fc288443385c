// Stage 3: spans that are clipped are multiplied in place, or moved towards the centre; spans that are zeroed
// get +0, or the centre. Tiles of all other spans leave at once: nothing of them is read or written.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(7) var<storage, read> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read> run: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn clip(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    if params.clips == CLIPS_ALL {
        clip_part(linear(workgroup, workgroups), local, WORKGROUP);
    }
}

// What is left once others have clipped: only the spans that the fast sums left open, nothing, or all. Few
// workgroups, as for the exact sums, because it is nearly always nothing.
@compute @workgroup_size(WORKGROUP)
fn clip_left(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y;
    var places = 0u;
    if params.clips == CLIPS_ALL {
        places = arrayLength(&tiles);
    } else if params.clips == CLIPS_OPEN {
        places = run[RUN_OPEN_TILES];
    }
    for (var place = linear(workgroup, workgroups); place < places; place += all) {
        var index = place;
        if params.clips == CLIPS_OPEN {
            // The tiles of a window lie side by side, those of other windows outside.
            index = run[open_tile(place, params.spans)] - tiles[0].slot;
        }
        clip_part(index, local, WORKGROUP);
    }
}

// Where every span is one short tile: LANES invocations to each.
@compute @workgroup_size(WORKGROUP)
fn clip_rows(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let rows = WORKGROUP / LANES;
    let index = item_of(linear(workgroup, workgroups), local / LANES, rows, arrayLength(&tiles));
    if params.clips == CLIPS_ALL {
        clip_part(index, local % LANES, LANES);
    }
}

fn clip_part(index: u32, first: u32, step: u32) {
    if index >= arrayLength(&tiles) {
        return;
    }
    let tile = tiles[index];
    if tile.span != NO_SPAN {
        apply(decisions[tile.span], tile, first, step);
    }
}
