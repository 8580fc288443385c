// Joins the pairs and magnitudes of a workgroup: shuffles in each subgroup, then shared memory where there are several.
// Invocation 0 gets the result. The arrays hold a slot per invocation, enough for subgroups of any size.

var<workgroup> shared_high: array<f32, WORKGROUP>;
var<workgroup> shared_low: array<f32, WORKGROUP>;
var<workgroup> shared_largest: array<u32, WORKGROUP>;

// What an invocation knows of its place in the workgroup.
struct Lane {
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) index: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

fn reduce(lane: Lane, pair: Pair, largest: u32) -> Partial {
    var sum = pair;
    for (var width = lane.size / 2u; width > 0u; width /= 2u) {
        sum = add_pairs(sum, Pair(subgroupShuffleXor(sum.high, width), subgroupShuffleXor(sum.low, width)));
    }
    let magnitude = subgroupMax(largest);
    // Where no workgroup has a second one.
    if SUBGROUP_MIN >= WORKGROUP {
        return Partial(sum.high, sum.low, magnitude);
    }
    if lane.index == 0u {
        shared_high[lane.subgroup] = sum.high;
        shared_low[lane.subgroup] = sum.low;
        shared_largest[lane.subgroup] = magnitude;
    }
    workgroupBarrier();
    var result = Partial(0.0, 0.0, 0u);
    if lane.local == 0u {
        var total = Pair(0.0, 0.0);
        var greatest = 0u;
        for (var subgroup = 0u; subgroup < lane.subgroups; subgroup++) {
            total = add_pairs(total, Pair(shared_high[subgroup], shared_low[subgroup]));
            greatest = max(greatest, shared_largest[subgroup]);
        }
        result = Partial(total.high, total.low, greatest);
    }
    return result;
}
