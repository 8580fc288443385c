// Stage 2: norms → one bound per group of spans; bound, norm and policies → one factor and status per span.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(5) var<storage, read> norms: array<Norm>;
@group(0) @binding(7) var<storage, read_write> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read_write> run: array<u32>;
@group(0) @binding(9) var<storage, read> groups: array<Group>;
@group(0) @binding(10) var<storage, read> members: array<u32>;
@group(0) @binding(11) var<storage, read_write> state: array<u32>;
@group(0) @binding(12) var<storage, read_write> bounds: array<u32>;

const BILLION: u32 = 1000000000u;

var<workgroup> histogram: array<atomic<u32>, 256>;
// How many norms there are, and how many of them are at or below the adaptive bound.
var<workgroup> counted: atomic<u32>;
var<workgroup> within: atomic<u32>;
// The upper digits of the norm that is being selected, and its rank among those that share them.
var<workgroup> prefix: u32;
var<workgroup> rank: u32;

// One workgroup for each group of spans that share a bound.
@compute @workgroup_size(WORKGROUP)
fn threshold_groups(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = linear(workgroup, workgroups);
    if index >= params.groups {
        return;
    }
    if params.non_finite == POLICY_ERROR && run[RUN_NON_FINITE] != 0u {
        // The run fails when its report is read: the state must not move.
        return;
    }
    let group = groups[index];
    if local == 0u {
        atomicStore(&counted, 0u);
        atomicStore(&within, 0u);
        prefix = 0u;
    }
    if group.rule == RULE_HISTORY {
        let round = group.state + 1u + (state[group.state] % group.window_or_least) * group.count;
        for (var i = local; i < group.count; i += WORKGROUP) {
            state[round + i] = norm_of_member(group, i);
        }
        storageBarrier();
    }
    workgroupBarrier();

    let entries = select(group.count, group.count * group.window_or_least, group.rule == RULE_HISTORY);
    for (var i = local; i < entries; i += WORKGROUP) {
        let norm = entry(group, i);
        if norm != NO_NORM {
            atomicAdd(&counted, 1u);
            if group.rule == RULE_ADAPTIVE && norm <= state[group.state] {
                atomicAdd(&within, 1u);
            }
        }
    }
    workgroupBarrier();
    let n = atomicLoad(&counted);
    if local == 0u {
        rank = rank_of(group, n);
    }
    workgroupBarrier();
    if group.rule != RULE_ADAPTIVE {
        // Radix selection: a digit of eight bits at a time, the uppermost first.
        for (var shift = 24i; shift >= 0; shift -= 8) {
            select_digit(group, entries, u32(shift), local);
        }
    }
    if local == 0u {
        conclude(group, index, n);
    }
}

// The norm rounded up to an f32 (with the exponent of a wide norm), so that the row which sets a bound
// is never above it; NO_NORM where the row has none to count.
fn norm_of_member(group: Group, i: u32) -> u32 {
    let span = members[group.first + i];
    let row_kind = norms[spans[span].row].kind;
    if row_kind == NON_FINITE || row_kind == OUT_OF_SCOPE {
        return NO_NORM;
    }
    return norms[span].wide + select(0u, 1u, norms[span].kind == ABOVE);
}

// The i-th norm that the rule looks at.
fn entry(group: Group, i: u32) -> u32 {
    if group.rule == RULE_HISTORY {
        return state[group.state + 1u + i];
    }
    return norm_of_member(group, i);
}

// The place, from 0, of the norm that the rule selects among n in ascending order.
fn rank_of(group: Group, n: u32) -> u32 {
    if n == 0u {
        return 0u;
    }
    if group.rule == RULE_ARC {
        let f = min(group.amount, n / 2u);
        return n - 1u - div64(mul64(2u * f, n - f), vec2<u32>(n, 0u)).x;
    }
    let scaled_rank = add64(mul64(group.amount, n), vec2<u32>(BILLION - 1u, 0u));
    return max(div64(scaled_rank, vec2<u32>(BILLION, 0u)).x, 1u) - 1u;
}

// Finds the next digit of the selected norm among the entries that share the digits above it.
fn select_digit(group: Group, entries: u32, shift: u32, local: u32) {
    for (var digit = local; digit < 256u; digit += WORKGROUP) {
        atomicStore(&histogram[digit], 0u);
    }
    workgroupBarrier();
    let known = prefix;
    for (var i = local; i < entries; i += WORKGROUP) {
        let norm = entry(group, i);
        // Shifts by 32 are not defined: the uppermost digit has none above it.
        if norm != NO_NORM && (shift == 24u || (norm >> ((shift + 8u) & 31u)) == (known >> ((shift + 8u) & 31u))) {
            atomicAdd(&histogram[(norm >> shift) & 255u], 1u);
        }
    }
    workgroupBarrier();
    if local == 0u {
        var left = rank;
        var digit = 0u;
        while digit < 255u && left >= atomicLoad(&histogram[digit]) {
            left -= atomicLoad(&histogram[digit]);
            digit++;
        }
        rank = left;
        prefix = known | (digit << shift);
    }
    workgroupBarrier();
}

// Writes the bound of a group, and moves its state on.
fn conclude(group: Group, index: u32, n: u32) {
    if group.rule == RULE_ADAPTIVE {
        let bound = state[group.state];
        bounds[index] = bound;
        state[group.state] = adapted(group, bound, atomicLoad(&within), n);
        return;
    }
    if group.rule == RULE_HISTORY {
        state[group.state] += 1u;
    }
    bounds[index] = select(times(prefix, group.factor_or_rate), INFINITY, n == 0u);
}

// factor * norm as the bits of an f32, rounded to nearest even; +inf where it is too large.
fn times(wide: u32, factor: u32) -> u32 {
    if wide == 0u || factor == 0u {
        return 0u;
    }
    let a = normalised(wide);
    let b = normalised(factor);
    var product = mul64(a.x, b.x);
    // The exponent field of the result, were it normal; normalised() adds 64 to each.
    var field = i32(a.y + b.y) - 128 - 126;
    if product.y < 0x8000u {
        product = shl64(product, 1u);
        field -= 1;
    }
    if field >= 255 {
        return INFINITY;
    }
    // Of 48 bits the upper 24 stay, fewer where the result is subnormal.
    let cut = u32(24 + max(1 - field, 0));
    if cut > 49u {
        return 0u;
    }
    let kept = shift_right(product, cut);
    let lost = sub64(product, shift_left(vec2<u32>(kept, 0u), cut));
    let half = shift_left(vec2<u32>(1u, 0u), cut - 1u);
    let up = less64(half, lost) || (all(half == lost) && (kept & 1u) == 1u);
    let bits = (u32(max(field - 1, 0)) << 23u) + kept + select(0u, 1u, up);
    return min(bits, INFINITY);
}

// n < 64, and the result below 2^32.
fn shift_right(a: vec2<u32>, n: u32) -> u32 {
    if n >= 32u {
        return a.y >> (n - 32u);
    }
    return shr64(a, n).x;
}

// n < 64
fn shift_left(a: vec2<u32>, n: u32) -> vec2<u32> {
    if n >= 32u {
        return vec2<u32>(0u, a.x << (n - 32u));
    }
    return shl64(a, n);
}

// 2^(2^-j) for j = 1 to 24, in units of 2^-31.
const ROOTS_OF_TWO: array<u32, 24> = array<u32, 24>(
    3037000500u, 2553802834u, 2341847524u, 2242560872u, 2194507417u, 2170868212u, 2159144272u, 2153306067u,
    2150392887u, 2148937775u, 2148210589u, 2147847087u, 2147665360u, 2147574502u, 2147529075u, 2147506361u,
    2147495005u, 2147489326u, 2147486487u, 2147485068u, 2147484358u, 2147484003u, 2147483825u, 2147483737u,
);

// The next adaptive bound C * exp(-rate * (b - target)), in integers (NUMERICS.md, "Thresholds that look at the batch").
fn adapted(group: Group, bound: u32, at_or_below: u32, n: u32) -> u32 {
    if n == 0u {
        return bound;
    }
    let wanted = mul64(group.amount, n);
    let got = mul64(at_or_below, BILLION);
    let whole = mul64(n, BILLION);
    let falls = less64(wanted, got);
    var remainder = sub64(wanted, got);
    if falls {
        remainder = sub64(got, wanted);
    }
    var ratio = 0u;
    if !less64(remainder, whole) {
        ratio = 0xffffffffu;
    } else {
        for (var bit = 0u; bit < 32u; bit++) {
            remainder = shl64(remainder, 1u);
            ratio <<= 1u;
            if !less64(remainder, whole) {
                remainder = sub64(remainder, whole);
                ratio |= 1u;
            }
        }
    }
    // Fixed point, 32 bits after the point, two's complement.
    var exponent = shr64(mul64(ratio, group.factor_or_rate), 24u);
    if falls {
        exponent = sub64(vec2<u32>(), exponent);
    }
    var roots = ROOTS_OF_TWO;
    var power = 0x80000000u;
    for (var j = 0u; j < 24u; j++) {
        if ((exponent.x >> (31u - j)) & 1u) == 1u {
            power = shr64(mul64(power, roots[j]), 31u).x;
        }
    }
    let product = mul64((bound & 0x7fffffu) | 0x800000u, power);
    let carry = select(0u, 1u, (product.y >> 23u) != 0u);
    let mantissa = (shr64(product, 30u + carry).x + 1u) >> 1u;
    let field = i32(bound >> 23u) + i32(carry) + bitcast<i32>(exponent.y);
    if field < 1 {
        return group.window_or_least;
    }
    if field > 254 {
        return group.greatest;
    }
    return clamp((u32(field - 1) << 23u) + mantissa, group.window_or_least, group.greatest);
}

@compute @workgroup_size(WORKGROUP)
fn threshold_spans(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let count = min(params.end, params.bounded) - params.first;
    let index = params.first + item_of(linear(workgroup, workgroups), local, WORKGROUP, count);
    if index >= params.first + count {
        return;
    }
    // Without norms, as behind a run that was refused, nothing is decided.
    if index == 0u && run[RUN_NORMS] != 0u {
        run[RUN_DECISIONS] = 1u + params.non_finite;
    }
    let span = spans[index];
    let norm = norms[index];
    var bound = span.bound;
    if span.group != NO_GROUP {
        bound = bounds[span.group];
    }
    let row_kind = norms[span.row].kind;
    let refused = params.non_finite == POLICY_ERROR && run[RUN_NON_FINITE] != 0u;
    decisions[index] = decision_of(norm, row_kind, bound, refused);
}
