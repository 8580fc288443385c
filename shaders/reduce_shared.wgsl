// Joins the pairs and magnitudes of a workgroup in shared memory. Invocation 0 gets the result.

var<workgroup> shared_high: array<f32, WORKGROUP>;
var<workgroup> shared_low: array<f32, WORKGROUP>;
var<workgroup> shared_largest: array<u32, WORKGROUP>;

// What an invocation knows of its place in the workgroup.
struct Lane {
    @builtin(local_invocation_index) local: u32,
}

fn reduce(lane: Lane, pair: Pair, largest: u32) -> Partial {
    let local = lane.local;
    shared_high[local] = pair.high;
    shared_low[local] = pair.low;
    shared_largest[local] = largest;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if local < width {
            let joined = add_pairs(
                Pair(shared_high[local], shared_low[local]),
                Pair(shared_high[local + width], shared_low[local + width]),
            );
            shared_high[local] = joined.high;
            shared_low[local] = joined.low;
            shared_largest[local] = max(shared_largest[local], shared_largest[local + width]);
        }
    }
    return Partial(shared_high[0], shared_low[0], shared_largest[0]);
}
