var<workgroup> shared_sums: array<f32, WORKGROUP>;

struct Lane {
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

// The sum of a workgroup, for invocation 0.
fn reduce(lane: Lane, sum: f32) -> f32 {
    let joined = subgroupAdd(sum);
    if lane.index == 0u {
        shared_sums[lane.subgroup] = joined;
    }
    workgroupBarrier();
    var result = 0.0;
    if lane.local == 0u {
        for (var subgroup = 0u; subgroup < lane.subgroups; subgroup++) {
            result += shared_sums[subgroup];
        }
    }
    return result;
}
