var<workgroup> shared_sums: array<f32, WORKGROUP>;

struct Lane {
    @builtin(local_invocation_index) local: u32,
}

// The sum of a workgroup, for invocation 0.
fn reduce(lane: Lane, sum: f32) -> f32 {
    shared_sums[lane.local] = sum;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane.local < width {
            shared_sums[lane.local] += shared_sums[lane.local + width];
        }
    }
    return shared_sums[0];
}
