// Stage 1, the fast way: tiles → spans → one norm per span that is certain; the others are UNDECIDED and listed
// for the exact sums.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(4) var<storage, read_write> partials: array<Partial>;
@group(0) @binding(5) var<storage, read_write> norms: array<Norm>;
@group(0) @binding(6) var<storage, read_write> exact_sums: array<u32>;
@group(0) @binding(7) var<storage, read_write> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read_write> run: array<atomic<u32>>;

@compute @workgroup_size(WORKGROUP)
fn norms_tiles(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = linear(workgroup, workgroups);
    if index == 0u && lane.local == 0u {
        partials[arrayLength(&partials) - 1u].largest = workgroups.x * workgroups.y;
    }
    if index >= arrayLength(&tiles) {
        return;
    }
    let tile = tiles[index];
    if tile.span == NO_SPAN {
        return;
    }
    if spans[tile.span].in_scope == 0u {
        return;
    }
    let part = sum_part(tile, lane.local, WORKGROUP);
    let joined = reduce(lane, Pair(part.high, part.low), part.largest);
    if lane.local == 0u {
        partials[tile.slot] = joined;
    }
}

// The place in the list of the first tile of a span that is open; NO_SPAN where it is not.
var<workgroup> listed: u32;

@compute @workgroup_size(WORKGROUP)
fn norms_spans(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = params.first + linear(workgroup, workgroups);
    if index >= params.end {
        return;
    }
    let span = spans[index];
    var total = Pair(0.0, 0.0);
    var largest = 0u;
    if span.in_scope != 0u {
        for (var slot = lane.local; slot < span.slot_count; slot += WORKGROUP) {
            let partial = partials[span.first_slot + slot];
            total = add_pairs(total, Pair(partial.high, partial.low));
            largest = max(largest, partial.largest);
        }
    }
    let joined = reduce(lane, total, largest);
    if lane.local == 0u {
        listed = settle_or_list(index, span, joined, is_run_whole());
    }
    workgroupBarrier();
    if listed != NO_SPAN {
        for (var tile = lane.local; tile < span.slot_count; tile += WORKGROUP) {
            list_tile(listed + tile, span.first_slot + tile, index);
        }
    }
}

// Where no span has many tiles: an invocation to each.
@compute @workgroup_size(WORKGROUP)
fn norms_few(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let count = params.end - params.first;
    let index = params.first + item_of(linear(workgroup, workgroups), local, WORKGROUP, count);
    if index >= params.end {
        return;
    }
    let span = spans[index];
    let listed_at = settle_or_list(index, span, joined_partials(span), is_run_whole());
    if listed_at != NO_SPAN {
        for (var tile = 0u; tile < span.slot_count; tile++) {
            list_tile(listed_at + tile, span.first_slot + tile, index);
        }
    }
}

// Where every span is one short tile: LANES invocations sum it and settle its norm, without partial sums.
@compute @workgroup_size(WORKGROUP)
fn norms_rows(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let rows = WORKGROUP / LANES;
    let index = item_of(linear(workgroup, workgroups), local / LANES, rows, arrayLength(&tiles));
    var tile = Tile(0u, 0u, NO_SPAN, 0u);
    if index < arrayLength(&tiles) {
        tile = tiles[index];
    }
    var span = Span();
    if tile.span != NO_SPAN {
        span = spans[tile.span];
    }
    if span.in_scope == 0u {
        tile.count = 0u;
    }
    let joined = join_lanes(local, sum_part(tile, local % LANES, LANES));
    if (local % LANES == 0u) & (tile.span != NO_SPAN) {
        let listed_at = settle_or_list(tile.span, span, joined, IS_WHOLE);
        if listed_at != NO_SPAN {
            list_tile(listed_at, tile.slot, tile.span);
        }
    }
}

// Joins the parts of the LANES invocations that share a span; the first of them gets the result.
fn join_lanes(local: u32, part: Partial) -> Partial {
    if LANES == 1u {
        return part;
    }
    shared_high[local] = part.high;
    shared_low[local] = part.low;
    shared_largest[local] = part.largest;
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if local % LANES < width {
            let joined = add_pairs(
                Pair(shared_high[local], shared_low[local]),
                Pair(shared_high[local + width], shared_low[local + width]),
            );
            shared_high[local] = joined.high;
            shared_low[local] = joined.low;
            shared_largest[local] = max(shared_largest[local], shared_largest[local + width]);
        }
    }
    return Partial(shared_high[local], shared_low[local], shared_largest[local]);
}
