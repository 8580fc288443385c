// What one would write without a contract, and the loops that measure ceilings: only benchmarks run these.
// Behind one of the element variants (Element, WIDTH, sum_of_squares, bits, times, rescaled) and one of the reductions
// (Lane, reduce).

// Part of the batch that one binding holds, in whole tiles.
struct Window {
    first_tile: u32,
    tiles: u32,
    tiles_per_row: u32,
    // Elements of a row, and of a tile.
    params: u32,
    tile: u32,
    // The element at which the binding begins.
    base: u32,
    bound: f32,
    // A uniform struct is padded to 32 bytes.
    padding: u32,
}

struct Tile {
    row: u32,
    // In units of Element.
    start: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> window: Window;
@group(0) @binding(1) var<storage, read> source: array<Element>;
@group(0) @binding(2) var<storage, read_write> data: array<Element>;
@group(0) @binding(3) var<storage, read_write> partials: array<f32>;
@group(0) @binding(4) var<storage, read> in_scope: array<u32>;
@group(0) @binding(5) var<storage, read_write> norms: array<f32>;
@group(0) @binding(6) var<storage, read_write> sums: array<u32>;

fn tile_at(index: u32) -> Tile {
    let tile = window.first_tile + index;
    let row = tile / window.tiles_per_row;
    let first = (tile % window.tiles_per_row) * window.tile;
    let count = min(window.tile, window.params - first);
    return Tile(row, (row * window.params + first - window.base) / WIDTH, count / WIDTH);
}

@compute @workgroup_size(WORKGROUP)
fn squares(lane: Lane, @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) all: vec3<u32>) {
    let index = id.x + id.y * all.x;
    // Four sums, so that loads do not wait for additions.
    var sum = array<f32, 4>();
    if index < window.tiles {
        let tile = tile_at(index);
        if in_scope[tile.row] != 0u {
            var i = lane.local;
            for (; i + 3u * WORKGROUP < tile.count; i += 4u * WORKGROUP) {
                let at = tile.start + i;
                let a = source[at];
                let b = source[at + WORKGROUP];
                let c = source[at + 2u * WORKGROUP];
                let d = source[at + 3u * WORKGROUP];
                sum[0] += sum_of_squares(a);
                sum[1] += sum_of_squares(b);
                sum[2] += sum_of_squares(c);
                sum[3] += sum_of_squares(d);
            }
            for (; i < tile.count; i += WORKGROUP) {
                let a = source[tile.start + i];
                sum[0] += sum_of_squares(a);
            }
        }
    }
    let joined = reduce(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    if lane.local == 0u && index < window.tiles {
        partials[window.first_tile + index] = joined;
    }
}

// One workgroup to a row.
@compute @workgroup_size(WORKGROUP)
fn roots(lane: Lane, @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) all: vec3<u32>) {
    let row = id.x + id.y * all.x;
    var sum = 0.0;
    if row < arrayLength(&norms) {
        for (var i = lane.local; i < window.tiles_per_row; i += WORKGROUP) {
            sum += partials[row * window.tiles_per_row + i];
        }
    }
    let joined = reduce(lane, sum);
    if lane.local == 0u && row < arrayLength(&norms) {
        norms[row] = sqrt(joined);
    }
}

@compute @workgroup_size(WORKGROUP)
fn scale(lane: Lane, @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) all: vec3<u32>) {
    let index = id.x + id.y * all.x;
    if index >= window.tiles {
        return;
    }
    let tile = tile_at(index);
    let norm = norms[tile.row];
    if norm <= window.bound {
        return;
    }
    let factor = window.bound / norm;
    for (var i = lane.local; i < tile.count; i += WORKGROUP) {
        data[tile.start + i] = times(data[tile.start + i], factor);
    }
}

// --- Ceilings

// Elements that an invocation reads one after the other, as the library's sums do where that is faster: what memory
// allows is what the better way finds.
override STRETCH: u32 = 1u;

var<workgroup> sum_of_tile: atomic<u32>;

@compute @workgroup_size(WORKGROUP)
fn read_all(lane: Lane, @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) all: vec3<u32>) {
    let index = id.x + id.y * all.x;
    if index >= window.tiles {
        return;
    }
    let tile = tile_at(index);
    var sum = array<u32, 4>();
    var stretched = 0u;
    if STRETCH >= 4u {
        let turn = WORKGROUP * STRETCH;
        stretched = tile.count / turn * turn;
        for (var first = lane.local * STRETCH; first < stretched; first += turn) {
            for (var at = tile.start + first; at < tile.start + first + STRETCH; at += 4u) {
                sum[0] += bits(source[at]);
                sum[1] += bits(source[at + 1u]);
                sum[2] += bits(source[at + 2u]);
                sum[3] += bits(source[at + 3u]);
            }
        }
    }
    var i = stretched + lane.local;
    for (; i + 3u * WORKGROUP < tile.count; i += 4u * WORKGROUP) {
        let at = tile.start + i;
        let a = source[at];
        let b = source[at + WORKGROUP];
        let c = source[at + 2u * WORKGROUP];
        let d = source[at + 3u * WORKGROUP];
        sum[0] += bits(a);
        sum[1] += bits(b);
        sum[2] += bits(c);
        sum[3] += bits(d);
    }
    for (; i < tile.count; i += WORKGROUP) {
        sum[0] += bits(source[tile.start + i]);
    }
    if lane.local == 0u {
        atomicStore(&sum_of_tile, 0u);
    }
    workgroupBarrier();
    atomicAdd(&sum_of_tile, sum[0] + sum[1] + sum[2] + sum[3]);
    workgroupBarrier();
    if lane.local == 0u {
        sums[window.first_tile + index] = atomicLoad(&sum_of_tile);
    }
}

@compute @workgroup_size(WORKGROUP)
fn scale_all(lane: Lane, @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) all: vec3<u32>) {
    let index = id.x + id.y * all.x;
    if index >= window.tiles {
        return;
    }
    let tile = tile_at(index);
    for (var i = lane.local; i < tile.count; i += WORKGROUP) {
        data[tile.start + i] = rescaled(data[tile.start + i]);
    }
}
