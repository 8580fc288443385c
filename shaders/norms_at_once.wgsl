// Stage 1 from partial sums to norms, those included that the fast sums leave open: for tiled batches in one window whose spans
// have few tiles, so few that a workgroup may sum all of its own exactly. One dispatch instead of two, and no list.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(4) var<storage, read_write> partials: array<Partial>;
@group(0) @binding(5) var<storage, read_write> norms: array<Norm>;
@group(0) @binding(7) var<storage, read_write> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read_write> run: array<atomic<u32>>;

// The spans that are open, and how many there are: counted, and then for all to read.
var<workgroup> open: array<u32, WORKGROUP>;
var<workgroup> counted: atomic<u32>;
var<workgroup> open_count: u32;

// An invocation settles a span; the workgroup sums those that stay open, one after the other.
@compute @workgroup_size(WORKGROUP)
fn norms_at_once(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    if local == 0u {
        atomicStore(&counted, 0u);
    }
    workgroupBarrier();
    let count = params.end - params.first;
    let index = params.first + item_of(linear(workgroup, workgroups), local, WORKGROUP, count);
    if index < params.end {
        let span = spans[index];
        if settle(index, span, joined_partials(span), is_run_whole()) {
            open[atomicAdd(&counted, 1u)] = index;
        }
    }
    workgroupBarrier();
    if local == 0u {
        open_count = atomicLoad(&counted);
    }
    let count_of_open = workgroupUniformLoad(&open_count);
    for (var place = 0u; place < count_of_open; place++) {
        let listed = open[place];
        let norm = exact_norm(local, spans[listed]);
        if local == 0u {
            norms[listed] = norm;
            decide_alone(listed, norm, spans[listed]);
        }
    }
}
