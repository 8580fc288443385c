// Stage 1, the exact way, for the spans that the fast way left open: an integer sum of squares in limbs of
// 16 bits, and its correctly rounded root. Always dispatched, with few workgroups that go through the list of
// what is open: it is nearly always empty, so nothing has to be read back and no workgroup comes for nothing.
// Where all spans are short, one dispatch, a workgroup to each; else two: a workgroup to each tile, then the roots.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(5) var<storage, read_write> norms: array<Norm>;
@group(0) @binding(6) var<storage, read_write> exact_sums: array<atomic<u32>>;
@group(0) @binding(7) var<storage, read_write> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read> run: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn exact_tiles(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y;
    for (var place = linear(workgroup, workgroups); place < run[RUN_OPEN_TILES]; place += all) {
        // The tiles of a window lie side by side, those of other windows outside.
        let index = run[open_tile(place, params.spans)] - tiles[0].slot;
        if index < arrayLength(&tiles) {
            let tile = tiles[index];
            if tile.span != NO_SPAN {
                add_tile(local, tile, run[open_tile(place, params.spans) + 1u]);
            }
        }
    }
}

fn add_tile(local: u32, tile: Tile, span: u32) {
    clear_joined(local);
    var sum = Cells();
    add_squares_of(local, tile, &sum);
    join_cells(&sum);

    // A cell holds at most 256 * 2^16; cut to 16 bits again, it can be added by 65,536 tiles.
    for (var limb = local; limb < LIMBS; limb += WORKGROUP) {
        let cell = atomicLoad(&joined[limb]);
        add_cell(span * LIMBS + limb, cell & 0xffffu);
        add_cell(span * LIMBS + limb + 1u, cell >> 16u);
    }
    // Before the cells are cleared for the next tile.
    workgroupBarrier();
}

fn add_cell(index: u32, value: u32) {
    if value != 0u {
        atomicAdd(&exact_sums[index], value);
    }
}

// Where one window holds all, and no span has many tiles: a workgroup takes a span alone, up to its root.
@compute @workgroup_size(WORKGROUP)
fn exact_few(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y;
    for (var place = linear(workgroup, workgroups); place < run[RUN_OPEN_SPANS]; place += all) {
        let index = run[RUN_LIST + place];
        let norm = exact_norm(local, spans[index]);
        if local == 0u {
            finish(index, norm);
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn exact_spans(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y * WORKGROUP;
    for (var i = linear(workgroup, workgroups) * WORKGROUP + local; i < run[RUN_OPEN_SPANS]; i += all) {
        let index = run[RUN_LIST + i];
        var cells = Limbs();
        for (var limb = 0u; limb < LIMBS; limb++) {
            cells[limb] = atomicLoad(&exact_sums[index * LIMBS + limb]);
        }
        finish(index, root_of_cells(&cells));
    }
}

fn finish(index: u32, norm: Norm) {
    norms[index] = norm;
    decide_alone(index, norm, spans[index]);
}
