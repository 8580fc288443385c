// Instead of clip: the weighted mean of the clipped rows, correctly rounded (NUMERICS.md, "The mean"). Here from fast sums, where
// these are certain to give the right one; the other coordinates are listed for mean_exact.wgsl.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(7) var<storage, read> decisions: array<Decision>;
@group(0) @binding(14) var<storage, read> weights: array<u32>;
// How many coordinates are open, and which.
@group(0) @binding(15) var<storage, read_write> open: array<atomic<u32>>;
// Sums of parts of the rows: for each part, those of all coordinates of the strip, in words of SUM_WORDS.
@group(0) @binding(17) var<storage, read_write> sums: array<u32>;
@group(0) @binding(18) var<storage, read_write> means: array<u32>;

const SUM_WORDS: u32 = 4u;

// Weighted sums of four coordinates, each as a pair.
struct Sums {
    high: vec4<f32>,
    low: vec4<f32>,
    // The sums of the terms' magnitudes.
    size: vec4<f32>,
    // The bits of the largest magnitude among the values that count; 0 only where all elements are zeros, and TOO_LARGE where the
    // sum is of no use.
    largest: vec4<u32>,
}

const TOO_LARGE: u32 = 0xffffffffu;

// What an invocation sums of one group of four coordinates.
struct Group4 {
    group: u32,
    // Where the sums of the part are kept.
    place: u32,
    terms: Terms,
    largest: vec4<u32>,
}

// Groups of an invocation, which looks at each row once for all of them.
const GROUPS: u32 = 4u;

// Part of a column of tiles, over one part of the rows, or what the window holds of it.
@compute @workgroup_size(WORKGROUP)
fn mean_sums(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = linear(workgroup, workgroups);
    let column = strip.first_tile + index / strip.blocks % strip.tiles;
    // The window begins anywhere in a row.
    let slot = tiles[0].slot;
    let skip = (column + strip.tiles_per_row - slot % strip.tiles_per_row) % strip.tiles_per_row;
    let count = arrayLength(&tiles);
    if skip >= count {
        return;
    }
    // The rows of which the window has the column, and those of them in the part.
    let row = (slot + skip) / strip.tiles_per_row;
    let part = slot / strip.tiles_per_row / strip.rows + index / (strip.blocks * strip.tiles);
    let begin = max(row, part * strip.rows);
    let end = min(row + (count - skip + strip.tiles_per_row - 1u) / strip.tiles_per_row, (part + 1u) * strip.rows);
    if begin >= end {
        return;
    }
    let elements = tiles[skip].count;
    let first = part * strip.length + starts_and_center[column] - strip.first;
    let is_begun = begin > part * strip.rows;
    // Neighbours read side by side, but each invocation where it likes where that is faster.
    let step = select(1u, WORKGROUP, STRETCH == 1u);
    let group = index % strip.blocks * WORKGROUP * GROUPS + local * select(GROUPS, 1u, STRETCH == 1u);
    var a = begun(group, first, elements, is_begun);
    var b = begun(group + step, first, elements, is_begun);
    var c = begun(group + 2u * step, first, elements, is_begun);
    var d = begun(group + 3u * step, first, elements, is_begun);
    for (var r = begin; r < end; r++) {
        let tile = tiles[skip + (r - row) * strip.tiles_per_row];
        let decision = decisions[tile.span];
        let weight = weights[WEIGHTS + r];
        if enters(decision.status) && weight != 0u && !vanishes(decision) {
            add_group(&a, tile, decision, bitcast<f32>(weight));
            add_group(&b, tile, decision, bitcast<f32>(weight));
            add_group(&c, tile, decision, bitcast<f32>(weight));
            add_group(&d, tile, decision, bitcast<f32>(weight));
        }
    }
    // Where this window is not all there is, mean_join settles every coordinate, those too of which it has all rows.
    let is_all = strip.parts == 1u && count == strip.clients * strip.tiles_per_row;
    finish(a, starts_and_center[column], elements, is_all);
    finish(b, starts_and_center[column], elements, is_all);
    finish(c, starts_and_center[column], elements, is_all);
    finish(d, starts_and_center[column], elements, is_all);
}

// A group before the rows of a window: nothing, or what those before have left.
fn begun(group: u32, first: u32, elements: u32, is_begun: bool) -> Group4 {
    let place = (first + group * 4u) * SUM_WORDS;
    var sum = Sums();
    if is_begun {
        for (var i = 0u; i < 4u && group * 4u + i < elements; i++) {
            sum.high[i] = bitcast<f32>(sums[place + i * SUM_WORDS]);
            sum.low[i] = bitcast<f32>(sums[place + i * SUM_WORDS + 1u]);
            sum.size[i] = bitcast<f32>(sums[place + i * SUM_WORDS + 2u]);
            sum.largest[i] = sums[place + i * SUM_WORDS + 3u];
        }
    }
    return Group4(group, place, terms_from(sum), sum.largest);
}

fn add_group(sum: ptr<function, Group4>, tile: Tile, decision: Decision, weight: f32) {
    let group = (*sum).group;
    if group * 4u >= tile.count {
        return;
    }
    let stored = coordinates4(tile, group);
    // NaN and Inf, which decisions of this data leave to rows out of scope, count as 0; where they are cut, as the bound.
    let end = select(INFINITY, MAGNITUDE + 1u, decision.status == CUT);
    let is_nothing = (stored & vec4<u32>(MAGNITUDE)) >= vec4<u32>(end);
    let bits = select(stored, vec4<u32>(), is_nothing);
    let value = select(counted(bits, tile, group, decision), vec4<f32>(), is_nothing);
    let magnitude = max(min(bits & vec4<u32>(MAGNITUDE), vec4<u32>(1u)), bitcast<vec4<u32>>(value) & vec4<u32>(MAGNITUDE));
    (*sum).largest = max((*sum).largest, magnitude);
    if !CENTERED && is_too_small(decision) {
        (*sum).largest = vec4<u32>(TOO_LARGE);
    }
    (*sum).terms = with_terms((*sum).terms, value, weight);
}

// The means of a group where all rows are summed, and else what waits for the others.
fn finish(group: Group4, column: u32, elements: u32, is_all: bool) {
    let sum = sums_of(group.terms, group.largest);
    for (var i = 0u; i < 4u && group.group * 4u + i < elements; i++) {
        if is_all {
            let coordinate = column + group.group * 4u + i;
            settle_mean(coordinate, Pair(sum.high[i], sum.low[i]), sum.size[i], sum.largest[i]);
        } else {
            let place = group.place + i * SUM_WORDS;
            sums[place] = bitcast<u32>(sum.high[i]);
            sums[place + 1u] = bitcast<u32>(sum.low[i]);
            sums[place + 2u] = bitcast<u32>(sum.size[i]);
            sums[place + 3u] = sum.largest[i];
        }
    }
}

// Behind all windows where there are several, or several parts: one coordinate for each invocation.
@compute @workgroup_size(WORKGROUP)
fn mean_join(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = linear(workgroup, workgroups) * WORKGROUP + local;
    if index >= strip.length {
        return;
    }
    var sum = Pair(0.0, 0.0);
    var size = 0.0;
    var largest = select(0u, TOO_LARGE, strip.parts == 0u);
    for (var first = 0u; first < strip.parts; first += JOINED) {
        var some = Pair(0.0, 0.0);
        for (var part = first; part < min(first + JOINED, strip.parts); part++) {
            let place = (part * strip.length + index) * SUM_WORDS;
            some = joined(some, Pair(bitcast<f32>(sums[place]), bitcast<f32>(sums[place + 1u])));
            size += bitcast<f32>(sums[place + 2u]);
            largest = max(largest, sums[place + 3u]);
        }
        sum = joined(sum, some);
    }
    settle_mean(strip.first + index, sum, size, largest);
}

// Parts that are joined before they join the sum, so that fewer additions follow each other.
const JOINED: u32 = 32u;

fn joined(a: Pair, b: Pair) -> Pair {
    let sum = add_signed(vec4<f32>(a.high), vec4<f32>(a.low), vec4<f32>(b.high), vec4<f32>(b.low));
    return Pair(sum.high.x, sum.low.x);
}

// Whether nothing is left of a row.
fn vanishes(decision: Decision) -> bool {
    return !CENTERED && decision.status == CLIPPED && decision.mantissa == 0u;
}

// What the clip stage would write of four elements, but for what is subnormal.
fn counted(bits: vec4<u32>, tile: Tile, group: u32, decision: Decision) -> vec4<f32> {
    if decision.status == CUT {
        return bitcast<vec4<f32>>(cut(bits, decision.bound));
    }
    if decision.status != CLIPPED {
        return bitcast<vec4<f32>>(bits);
    }
    if CENTERED {
        let center = center4(tile, group, strip.tiles_per_row);
        return bitcast<vec4<f32>>(vec4<u32>(
            scaled_around(bits.x, center.x, decision),
            scaled_around(bits.y, center.y, decision),
            scaled_around(bits.z, center.z, decision),
            scaled_around(bits.w, center.w, decision),
        ));
    }
    return product(bits, decision);
}

// Writes the mean of a coordinate where its sum makes it certain, and lists it where not. Where nothing weighs anything, no run
// decided, or a row is refused, it is what changes nothing: the centre, or +0 without one.
fn settle_mean(coordinate: u32, sum: Pair, size: f32, largest: u32) {
    let divisor = Pair(bitcast<f32>(weights[DIVISOR]), bitcast<f32>(weights[DIVISOR + 1u]));
    if weights[DIVISOR] == 0u {
        if CENTERED {
            means[coordinate] = starts_and_center[strip.tiles_per_row + coordinate];
        } else {
            means[coordinate] = 0u;
        }
        return;
    }
    if largest == 0u {
        means[coordinate] = 0u;
        return;
    }
    var mean = sum.high / divisor.high;
    mean += rest_of(sum, mean, divisor) / divisor.high;
    let field = (bitcast<u32>(mean) & MAGNITUDE) >> 23u;
    // Neither terms nor their sums may overflow: 2^20 terms below 2^91.
    let fits = weights[DIVISOR] < INFINITY && (largest >> 23u) + (weights[DIVISOR] >> 23u) < 2u * 127u + 90u;
    if fits && field > 26u && field < 254u {
        // Half the distance to the next number towards 0, which is less below a power of two.
        let power = select(0u, 1u, (bitcast<u32>(mean) & 0x7fffffu) == 0u);
        let half = bitcast<f32>((field - 24u - power) << 23u);
        let error = size * strip.error + (divisor.high + f32(16u * (strip.clients + strip.parts + 16u))) * FLUSHED;
        if abs(rest_of(sum, mean, divisor)) + error < divisor.high * half * ALMOST_ONE {
            means[coordinate] = bitcast<u32>(mean);
            return;
        }
    }
    atomicStore(&open[1u + atomicAdd(&open[0], 1u)], coordinate);
}

// 2^-125: more than a device loses where it flushes a subnormal number.
const FLUSHED: f32 = 2.350988701644575e-38;
// 1 - 2^-20
const ALMOST_ONE: f32 = 0.99999904632568359375;

// sum - mean * divisor, within 2^-44 of the sum where the mean is near its quotient.
fn rest_of(sum: Pair, mean: f32, divisor: Pair) -> f32 {
    let product = exact_product(vec4<f32>(mean), divisor.high);
    return ((sum.high - product.high.x) - product.low.x) + (sum.low - mean * divisor.low);
}
