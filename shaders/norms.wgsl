// Stage 1, the fast way: tiles → spans → one norm per span that is certain, or UNDECIDED.

struct Partial {
    high: f32,
    low: f32,
    // The bits of the largest magnitude: tells NaN, Inf, zero and what is out of the fast range.
    largest: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(4) var<storage, read_write> partials: array<Partial>;
@group(0) @binding(5) var<storage, read_write> norms: array<Norm>;
@group(0) @binding(6) var<storage, read_write> limbs: array<u32>;
@group(0) @binding(8) var<storage, read_write> run: array<atomic<u32>>;

// Squares that one f32 sum takes before it joins the invocation's pair; the error bound relies on it.
const CHAIN: u32 = 8u;

@compute @workgroup_size(WORKGROUP)
fn norms_tiles(
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
    if spans[tile.span].in_scope == 0u {
        return;
    }
    let groups = (tile.count + 3u) / 4u;
    var total = Pair(0.0, 0.0);
    var largest = vec4<u32>();
    var group = lane.local;
    while group < groups {
        var sums = vec4<f32>();
        var lost = vec4<f32>();
        for (var link = 0u; link < CHAIN && group < groups; link++) {
            let value = load4(tile, group);
            let magnitude = value & vec4<u32>(MAGNITUDE);
            largest = max(largest, magnitude);
            if CENTERED {
                let center = center4(tile, group, params.tiles_per_row);
                largest = max(largest, center & vec4<u32>(MAGNITUDE));
                add_square_differences(value, center, &sums, &lost);
            } else {
                add_squares(magnitude, &sums, &lost);
            }
            group += WORKGROUP;
        }
        let left = add_pairs(renormalise(sums.x, lost.x), renormalise(sums.y, lost.y));
        let right = add_pairs(renormalise(sums.z, lost.z), renormalise(sums.w, lost.w));
        total = add_pairs(total, add_pairs(left, right));
    }
    let magnitude = max(max(largest.x, largest.y), max(largest.z, largest.w));
    let joined = reduce(lane, total, magnitude);
    if lane.local == 0u {
        partials[tile.slot] = joined;
    }
}

@compute @workgroup_size(WORKGROUP)
fn norms_spans(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = linear(workgroup, workgroups);
    if index >= params.spans {
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
    if lane.local != 0u {
        return;
    }
    if index == 0u {
        atomicStore(&run[RUN_NORMS], 1u);
    }
    if span.in_scope == 0u {
        norms[index] = Norm(0u, OUT_OF_SCOPE);
        return;
    }
    let norm = decided(joined, span);
    norms[index] = norm;
    if norm.kind == NON_FINITE {
        atomicOr(&run[RUN_NON_FINITE], 1u);
    }
    if norm.kind == UNDECIDED {
        for (var limb = 0u; limb < LIMBS; limb++) {
            limbs[index * LIMBS + limb] = 0u;
        }
    }
}

fn decided(sum: Partial, span: Span) -> Norm {
    if sum.largest >= INFINITY {
        return Norm(0u, NON_FINITE);
    }
    if params.coordinates != 0u {
        return Norm(sum.largest, EXACT);
    }
    if sum.largest == 0u {
        return Norm(0u, EXACT);
    }
    if sum.largest >= select(LARGEST, LARGEST_OF_DIFFERENCE, CENTERED) || params.force_exact != 0u {
        return Norm(0u, UNDECIDED);
    }
    return certify(Pair(sum.high, sum.low), span);
}

// The norm of a sum known to a relative error and an absolute one, where that is enough to know it.
//
// The squares of all 25-bit integers, scaled, are the only sums at which the rounded norm or its
// comparison with the exact one changes: between two neighbours both are constant.
fn certify(sum: Pair, span: Span) -> Norm {
    let undecided = Norm(0u, UNDECIDED);
    let field = bitcast<u32>(sum.high) >> 23u;
    if field == 0u || field >= 255u {
        return undecided;
    }
    // The sum as an integer of 56 bits times 2^exponent.
    var integer = vec2<u32>(0u, (bitcast<u32>(sum.high) & 0x7fffffu) | 0x800000u);
    var exponent = i32(field) - 127 - 23 - 32;
    let low = bitcast<u32>(sum.low);
    let low_field = (low & MAGNITUDE) >> 23u;
    if low_field != 0u {
        // At most half a unit of high, so at most 2^31 here; what is shifted out is below 1.
        let down = field - low_field;
        if low_field + 24u > field {
            return undecided;
        }
        let mantissa = (low & 0x7fffffu) | 0x800000u;
        var aligned = vec2<u32>();
        if down <= 32u {
            aligned = shl64(vec2<u32>(mantissa, 0u), 32u - down);
        } else if down < 64u {
            aligned = vec2<u32>(mantissa >> (down - 32u), 0u);
        }
        if (low >> 31u) == 0u {
            integer = add64(integer, aligned);
        } else {
            integer = sub64(integer, aligned);
        }
    }
    if integer.y < 0x800000u {
        integer = shl64(integer, 1u);
        exponent -= 1;
    }
    // In units of 2^-298, the square of the least subnormal.
    exponent += 298 - 2 * i32(PRESCALE);
    let length = 56 + exponent;
    if length <= 49 {
        return undecided;
    }
    let scale = root_scale(length);
    // The radicand of 49 or 50 bits, and seven bits after the point.
    let radicand = shl64(integer, u32(exponent - 2 * scale + 7));
    // Flushed subnormals: below 2^-122 for each element, prescaled; in units of the radicand that
    // is 2^-flushed.
    let flushed = 2 * scale + 2 * i32(PRESCALE) - (298 - 122 + 7);
    if flushed < 0 {
        return undecided;
    }
    let relative = (radicand.y >> 16u) * span.error_units + span.error_units;
    let error = vec2<u32>(relative + (span.length >> u32(min(flushed, 31))) + 8u, 0u);
    let root = root64(shr64(radicand, 7u));
    let below = shl64(square64(root), 7u);
    let above = shl64(square64(root + 1u), 7u);
    if !less64(add64(below, error), radicand) || !less64(add64(radicand, error), above) {
        return undecided;
    }
    // Even: just above a representable norm. Odd: past the middle between two, up to the next.
    return rounded(root, scale, select(ABOVE, BELOW, (root & 1u) == 1u));
}

fn rounded(root: u32, scale: i32, kind: u32) -> Norm {
    return Norm(((root + 1u) >> 1u) + (u32(scale + 1) << 23u), kind);
}
