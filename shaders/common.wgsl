// Shared by every kernel: the data structures, 64-bit integers, and the bits of f32.
// Everything that decides a result is integer arithmetic, which no compiler may change, or was tried on the device before.

// Part of one span (a row or a segment) that one workgroup reads or writes.
struct Tile {
    // First element, counted from the start of the window that the kernel sees.
    start: u32,
    // Elements; 0 in the entries that pad a window's list.
    count: u32,
    // The span that the elements belong to.
    span: u32,
    // This tile's place among the partial sums; those of a span lie side by side.
    slot: u32,
}

struct Span {
    // The bound λ as the bits of an f32.
    bound: u32,
    // 0: out of scope, neither read nor written.
    in_scope: u32,
    first_slot: u32,
    slot_count: u32,
    // The span of the row that this span is part of; itself where rows are not cut.
    row: u32,
    // Elements.
    length: u32,
    // Bounds the relative error of the fast sum, in units of 2^-48.
    error_units: u32,
    // The group that the bound comes from, or NO_GROUP where `bound` holds it.
    group: u32,
}

// Spans that share a bound, and the rule for it.
struct Group {
    // Members are members[first] … members[first + count - 1].
    first: u32,
    count: u32,
    // The group's words of state begin here.
    state: u32,
    // RULE_*
    rule: u32,
    // Billionths of a quantile or target, or the number of Byzantine clients.
    amount: u32,
    // The bits of a factor, or the adaptive rate in units of 2^-24 powers of two.
    factor_or_rate: u32,
    // Rounds of a history, or the bits of the least C.
    window_or_least: u32,
    // The bits of the greatest C.
    greatest: u32,
}

// A norm: the bits of an f32 whose exponent field may grow past 254, and its side or why there is none.
struct Norm {
    wide: u32,
    // The class of the host's norm; WGSL reserves that word.
    kind: u32,
}

struct Decision {
    norm: Norm,
    // The factor is mantissa * 2^exponent, the mantissa an f32 in [1, 2) or 0.
    mantissa: u32,
    exponent: i32,
    bound: u32,
    status: u32,
}

struct Params {
    // 0 at run time, which the compiler cannot know; see opaque().
    zero: u32,
    // Spans that have a norm: those with a bound, then, where these are segments, the rows.
    spans: u32,
    // Spans that have a bound.
    bounded: u32,
    // POLICY_*
    non_finite: u32,
    // 1: every norm takes the exact sum.
    force_exact: u32,
    // Groups of spans that share a bound.
    groups: u32,
    // 1: every coordinate is bounded, and a norm is the largest magnitude.
    coordinates: u32,
    // Where all rows are cut alike: the tiles of a row, which follow each other; else 0.
    tiles_per_row: u32,
    // The spans that a dispatch is for: from `first` on, below `end`.
    first: u32,
    end: u32,
    // CLIPS_*
    clips: u32,
    // 1: rows are decided alone, by what settles their norms: bounds are given, no row may refuse the batch, and none has segments
    // with bounds.
    decides: u32,
    // Where workgroups come for tiles in scope only: how many there are; else 0.
    tiles_in_scope: u32,
}

const BELOW: u32 = 0u;
const EXACT: u32 = 1u;
const ABOVE: u32 = 2u;
const NON_FINITE: u32 = 3u;
const OUT_OF_SCOPE: u32 = 4u;
// Known to the shaders only: the fast sum left the norm open.
const UNDECIDED: u32 = 5u;

const UNTOUCHED: u32 = 0u;
const CLIPPED: u32 = 1u;
const ZEROED: u32 = 2u;
const STATUS_OUT_OF_SCOPE: u32 = 3u;
const KEPT: u32 = 4u;
// Known to the shaders and the readback only: clipped, coordinate by coordinate.
const CUT: u32 = 5u;
// Not finite, under the policy that makes that an error.
const REFUSED: u32 = 6u;

const POLICY_ZERO: u32 = 0u;
const POLICY_ERROR: u32 = 1u;
const POLICY_KEEP: u32 = 2u;

// What a clip clips: every tile; those of open spans, because fused kernels clip all others; or none, because
// that is done, has to wait for the whole batch, or nothing decides in this run.
const CLIPS_ALL: u32 = 0u;
const CLIPS_OPEN: u32 = 1u;
const CLIPS_NONE: u32 = 2u;

const RULE_QUANTILE: u32 = 0u;
const RULE_HISTORY: u32 = 1u;
const RULE_ARC: u32 = 2u;
const RULE_ADAPTIVE: u32 = 3u;

// Words of `run`, which begins as zeros: whether a row in scope is not finite; whether the norms are there;
// 1 + the non-finite policy once decisions are; how many spans the fast sums left open, and of how many tiles.
const RUN_NON_FINITE: u32 = 0u;
const RUN_NORMS: u32 = 1u;
const RUN_DECISIONS: u32 = 2u;
const RUN_OPEN_SPANS: u32 = 3u;
const RUN_OPEN_TILES: u32 = 4u;
// Behind them, and not cleared, the spans that are open; behind params.spans of those, two words to each, the tiles
// that they are made of.
const RUN_LIST: u32 = 8u;

const NO_GROUP: u32 = 0xffffffffu;
const NO_NORM: u32 = 0xffffffffu;
const NO_SPAN: u32 = 0xffffffffu;
const MAGNITUDE: u32 = 0x7fffffffu;
const INFINITY: u32 = 0x7f800000u;

// Limbs of an exact sum: 16 bits each in cells of 32, over the 585 bits that 2^31 squares can take.
const LIMBS: u32 = 40u;

override WORKGROUP: u32 = 256u;

// Invocations that share a span where spans are short; divides WORKGROUP.
override LANES: u32 = 1u;

// Invocations of the smallest subgroup that the device may use; 1 without subgroups.
override SUBGROUP_MIN: u32 = 1u;

// Where the lanes of a vector read memory one by one, as on lavapipe, each is fastest in pages of its own; on hardware
// neighbours read side by side, and both of these are 1. Groups of four that an invocation sums one after the other,
// and parts of a batch in which a workgroup takes items at once.
override STRETCH: u32 = 1u;
override STREAMS: u32 = 1u;

// Whether rows are clipped around a centre.
override CENTERED: bool = false;

// The dispatch is folded into two dimensions, because one holds only 65,535 workgroups.
fn linear(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.x + id.y * count.x;
}

// Where in `run` a tile is listed that is open, of a batch of so many spans: its slot, then its span.
fn open_tile(place: u32, spans: u32) -> u32 {
    return RUN_LIST + spans + 2u * place;
}

// The item that an invocation takes, where each of `lanes` in a workgroup takes one of `count`: side by side, or in STREAMS
// parts of them. Not below `count` where there is none left.
fn item_of(workgroup: u32, lane: u32, lanes: u32, count: u32) -> u32 {
    let streams = min(STREAMS, lanes);
    let part = (count + streams - 1u) / streams;
    let at = workgroup * (lanes / streams) + lane / streams;
    return select(lane % streams * part + at, count, at >= part);
}

// How one of `step` invocations walks through `groups`: in stretches as long as there is one for each of
// them, then side by side.
struct Walk {
    first: u32,
    step: u32,
    // Its groups in stretches, and its groups in all.
    stretched: u32,
    count: u32,
}

fn walk_of(first: u32, step: u32, groups: u32) -> Walk {
    let stretched = groups / (step * STRETCH) * STRETCH;
    let left = groups - stretched * step;
    return Walk(first, step, stretched, stretched + (left + step - first - 1u) / step);
}

// The group of a step of the walk.
fn group_of(walk: Walk, at: u32) -> u32 {
    if STRETCH == 1u {
        return at * walk.step + walk.first;
    }
    let in_stretch = (at / STRETCH * walk.step + walk.first) * STRETCH + at % STRETCH;
    return select(at * walk.step + walk.first, in_stretch, at < walk.stretched);
}

// The value of a finite magnitude is mantissa * 2^exponent, in units of 2^-149.
fn mantissa_of(magnitude: u32) -> u32 {
    return (magnitude & 0x7fffffu) | select(0u, 0x800000u, magnitude >= 0x800000u);
}

fn exponent_of(magnitude: u32) -> u32 {
    return max(magnitude >> 23u, 1u) - 1u;
}

// --- 64-bit integers as vec2<u32>(low, high)

fn add64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn sub64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn less64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

// n < 32
fn shl64(a: vec2<u32>, n: u32) -> vec2<u32> {
    if n == 0u {
        return a;
    }
    return vec2<u32>(a.x << n, (a.y << n) | (a.x >> (32u - n)));
}

// n < 32
fn shr64(a: vec2<u32>, n: u32) -> vec2<u32> {
    if n == 0u {
        return a;
    }
    return vec2<u32>((a.x >> n) | (a.y << (32u - n)), a.y >> n);
}

fn mul64(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let left = (a >> 16u) * (b & 0xffffu);
    let right = (a & 0xffffu) * (b >> 16u);
    var result = vec2<u32>(low, (a >> 16u) * (b >> 16u));
    result = add64(result, vec2<u32>(left << 16u, left >> 16u));
    return add64(result, vec2<u32>(right << 16u, right >> 16u));
}

// The quotient of numbers below 2^63, rounded down; the divisor is not 0.
fn div64(dividend: vec2<u32>, divisor: vec2<u32>) -> vec2<u32> {
    var remainder = vec2<u32>();
    var quotient = vec2<u32>();
    for (var bit = 0u; bit < 64u; bit++) {
        let next = select(dividend.x >> (63u - bit), dividend.y >> (31u - bit), bit < 32u) & 1u;
        remainder = shl64(remainder, 1u) | vec2<u32>(next, 0u);
        quotient = shl64(quotient, 1u);
        if !less64(remainder, divisor) {
            remainder = sub64(remainder, divisor);
            quotient.x |= 1u;
        }
    }
    return quotient;
}

// The square of a number below 2^26.
fn square64(a: u32) -> vec2<u32> {
    let high = a >> 13u;
    let low = a & 0x1fffu;
    let middle = high * low;
    var result = vec2<u32>(low * low, 0u);
    result = add64(result, shl64(vec2<u32>(middle, 0u), 14u));
    return add64(result, shl64(vec2<u32>(high * high, 0u), 26u));
}

// The integer root of a number below 2^50. A device's own root is a guess of it, which one step of Newton's makes good;
// whatever the device gives, the result is checked in integers, and made bit by bit where it is wrong.
fn root64(radicand: vec2<u32>) -> u32 {
    let guess = min(u32(sqrt(f32(radicand.y) * 4294967296.0 + f32(radicand.x))), 0x1ffffffu);
    // What is left fits 32 bits where the guess is good.
    let left = bitcast<i32>(sub64(radicand, square64(guess)).x);
    var root = guess + bitcast<u32>(i32(floor(f32(left) / (2.0 * max(f32(guess), 1.0)))));
    root = min(root, 0x1ffffffu);
    if less64(radicand, square64(root)) {
        root -= 1u;
    }
    if !less64(radicand, square64(root + 1u)) {
        root += 1u;
    }
    if less64(radicand, square64(root)) | !less64(radicand, square64(root + 1u)) {
        root = 0u;
        for (var bit = 0x1000000u; bit != 0u; bit >>= 1u) {
            let candidate = root | bit;
            if !less64(radicand, square64(candidate)) {
                root = candidate;
            }
        }
    }
    return root;
}

// The scale k of a root: a sum of `length` bits shifted right by 2k has 49 or 50 bits, so that its
// root has 25: the 24 of an f32 and one that decides the rounding. -1 where roots are subnormal.
fn root_scale(length: i32) -> i32 {
    if length <= 48 {
        return -1;
    }
    return (length - 49) / 2;
}
