// All stages of a row in one dispatch: a workgroup sums it, settles its norm and clips it, reading it the second
// time from the cache. Where rows are not decided alone it leaves the clip to later kernels, and likewise that of a
// row whose norm stays open.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(5) var<storage, read_write> norms: array<Norm>;
@group(0) @binding(6) var<storage, read_write> exact_sums: array<u32>;
@group(0) @binding(7) var<storage, read_write> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read_write> run: array<atomic<u32>>;

var<workgroup> made: Decision;

// Where every span is a row of one tile.
@compute @workgroup_size(WORKGROUP)
fn fused(
    lane: Lane,
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
    let span = spans[tile.span];
    var part = Partial(0.0, 0.0, 0u);
    if span.in_scope != 0u {
        part = sum_part(tile, lane.local, WORKGROUP);
    }
    let joined = reduce(lane, Pair(part.high, part.low), part.largest);
    if lane.local == 0u {
        let listed_at = settle_or_list(tile.span, span, joined, IS_WHOLE);
        if listed_at != NO_SPAN {
            list_tile(listed_at, tile.slot, tile.span);
        }
        made = Decision(Norm(0u, UNDECIDED), 0u, 0, 0u, UNTOUCHED);
        if (listed_at == NO_SPAN) & (params.decides != 0u) {
            made = decisions[tile.span];
        }
    }
    workgroupBarrier();
    // In stretches an invocation writes what another one has read.
    storageBarrier();
    apply(made, tile, lane.local, WORKGROUP);
}
