// Before the mean: the sum of the weights of the rows that count, exact, and as a pair of f32.

@group(0) @binding(7) var<storage, read> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read> run: array<u32>;
@group(0) @binding(14) var<storage, read_write> weights: array<atomic<u32>>;

// Rows whose weights one workgroup sums: 2^14 pieces of 16 bits fit a cell, and as many workgroups' limbs. 2^28 weights below
// 2^128, in units of 2^-149, make 305 bits.
const WEIGHT_ROWS: u32 = 16384u;

var<workgroup> row_weights: array<atomic<u32>, WEIGHT_CELLS>;

@compute @workgroup_size(WORKGROUP)
fn mean_weights(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    for (var i = local; i < WEIGHT_CELLS; i += WORKGROUP) {
        atomicStore(&row_weights[i], 0u);
    }
    workgroupBarrier();
    let first = linear(workgroup, workgroups) * WEIGHT_ROWS;
    let end = min(strip.clients, first + WEIGHT_ROWS);
    for (var row = first + local; row < end; row += WORKGROUP) {
        let status = decisions[row * strip.spans_per_row].status;
        if status == REFUSED {
            atomicMax(&weights[REFUSAL], 0xffffffffu - row);
        }
        if enters(status) {
            let weight = atomicLoad(&weights[WEIGHTS + row]);
            // Its lower half has a unit of its own exponent, less 23.
            if weight != 0u && weight < 24u << 23u {
                atomicStore(&weights[TINY], 1u);
            }
            let position = exponent_of(weight);
            let pieces = shl64(vec2<u32>(mantissa_of(weight), 0u), position % 16u);
            let limb = position / 16u;
            atomicAdd(&row_weights[limb], pieces.x & 0xffffu);
            atomicAdd(&row_weights[limb + 1u], pieces.x >> 16u);
            atomicAdd(&row_weights[limb + 2u], pieces.y);
        }
    }
    workgroupBarrier();
    if local == 0u {
        var carry = 0u;
        for (var i = 0u; i < WEIGHT_CELLS; i++) {
            carry += atomicLoad(&row_weights[i]);
            atomicAdd(&weights[i], carry & 0xffffu);
            carry >>= 16u;
        }
        // Decisions that no run made are of nothing.
        if run[RUN_DECISIONS] != 0u {
            atomicStore(&weights[SUMMED], 1u);
        }
    }
}

// Behind all workgroups of mean_weights, one alone: the limbs of 16 bits, and the pair.
@compute @workgroup_size(WORKGROUP)
fn mean_divisor(@builtin(local_invocation_index) local: u32) {
    if local != 0u {
        return;
    }
    var carry = 0u;
    var length = 0u;
    for (var i = 0u; i < WEIGHT_CELLS; i++) {
        carry += atomicLoad(&weights[i]);
        let limb = carry & 0xffffu;
        carry >>= 16u;
        atomicStore(&weights[i], limb);
        if limb != 0u {
            length = 16u * i + 32u - countLeadingZeros(limb);
        }
    }
    var pair = vec2<u32>(INFINITY, 0u);
    if length == 0u || atomicLoad(&weights[SUMMED]) == 0u || atomicLoad(&weights[REFUSAL]) != 0u {
        pair = vec2<u32>();
    } else if atomicLoad(&weights[TINY]) == 0u && length >= LEAST_LENGTH && length <= GREATEST_LENGTH {
        // The upper 24 bits and the next 24, in units of 2^-149; what is below them is less than 2^-47 of the sum.
        pair.x = (bits24(length - 24u) & 0x7fffffu) | ((length - 23u) << 23u);
        let low = bits24(length - 48u);
        if low != 0u {
            pair.y = bitcast<u32>(f32(low)) + length * 0x800000u - 197u * 0x800000u;
        }
    }
    atomicStore(&weights[DIVISOR], pair.x);
    atomicStore(&weights[DIVISOR + 1u], pair.y);
}

// Sums of weights from 2^-60 up to 2^100.
const LEAST_LENGTH: u32 = 90u;
const GREATEST_LENGTH: u32 = 249u;

fn bits24(position: u32) -> u32 {
    let limb = position / 16u;
    let low = atomicLoad(&weights[limb]) | (atomicLoad(&weights[limb + 1u]) << 16u);
    return shr64(vec2<u32>(low, atomicLoad(&weights[limb + 2u])), position % 16u).x & 0xffffffu;
}
