// Instead of clip: the weighted mean of the clipped rows, correctly rounded (NUMERICS.md, "The mean").
//
// Everything is integer arithmetic. A sum lies in cells of 32 bits that hold limbs of 16: a limb takes the
// pieces of thousands of products before carries have to be passed on.

// What one dispatch works on: the coordinates of some tiles, in all rows that the window holds of them.
struct Strip {
    clients: u32,
    spans_per_row: u32,
    // The tiles of a row follow each other, so the k-th tile of row r has the slot r * tiles_per_row + k.
    tiles_per_row: u32,
    // The first tile of a row that belongs to the strip, and their number.
    first_tile: u32,
    tiles: u32,
    // Workgroups for each tile.
    blocks: u32,
    // The first coordinate, and their number.
    first: u32,
    length: u32,
}

@group(0) @binding(1) var<storage, read> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(7) var<storage, read> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read> run: array<u32>;
@group(0) @binding(13) var<uniform> strip: Strip;
@group(0) @binding(14) var<storage, read> weights: array<u32>;
@group(0) @binding(15) var<storage, read_write> weight_sum: array<atomic<u32>>;
// Sums of rows in several windows, between the dispatches.
@group(0) @binding(17) var<storage, read_write> sums: array<u32>;
@group(0) @binding(18) var<storage, read_write> means: array<u32>;

// A product of two f32 is an integer in units of 2^-298, and one bit more rounds the quotient: 2^28 products
// below 2^256 make 583 bits. The last limb is the sign's.
const CELLS: u32 = 38u;
// 2^28 weights below 2^128, in units of 2^-149, make 305 bits.
const WEIGHT_CELLS: u32 = 20u;
// Behind them: 1 once the weights are summed; 2^32 - 1 less the first row that is refused, or 0.
const SUMMED: u32 = WEIGHT_CELLS;
const REFUSAL: u32 = WEIGHT_CELLS + 1u;
// Rows whose weights one workgroup sums: 2^14 pieces of 16 bits fit a cell, and as many workgroups' limbs.
const WEIGHT_ROWS: u32 = 16384u;

alias Cells = array<i32, CELLS>;
alias Weight = array<u32, WEIGHT_CELLS>;

var<workgroup> row_weights: array<atomic<u32>, WEIGHT_CELLS>;

// The sum of the weights of the rows that count.
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
            atomicMax(&weight_sum[REFUSAL], 0xffffffffu - row);
        }
        if enters(status) {
            let position = exponent_of(weights[row]);
            let pieces = shl64(vec2<u32>(mantissa_of(weights[row]), 0u), position % 16u);
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
            atomicAdd(&weight_sum[i], carry & 0xffffu);
            carry >>= 16u;
        }
        // Decisions that no run made are of nothing.
        if run[RUN_DECISIONS] != 0u {
            atomicStore(&weight_sum[SUMMED], 1u);
        }
    }
}

// One coordinate for each invocation, over the rows in the window.
@compute @workgroup_size(WORKGROUP)
fn mean(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = linear(workgroup, workgroups);
    if index >= strip.tiles * strip.blocks {
        return;
    }
    let column = strip.first_tile + index / strip.blocks;
    let element = (index % strip.blocks) * WORKGROUP + local;
    // The window begins anywhere in a row.
    let slot = tiles[0].slot;
    let skip = (column + strip.tiles_per_row - slot % strip.tiles_per_row) % strip.tiles_per_row;
    let count = arrayLength(&tiles);
    if skip >= count {
        return;
    }
    if element >= tiles[skip].count {
        return;
    }
    let coordinate = columns[column] + element;

    var sum: Cells;
    var row = (slot + skip) / strip.tiles_per_row;
    if row > 0u {
        for (var i = 0u; i < CELLS; i++) {
            sum[i] = i32(sums[i * strip.length + coordinate - strip.first]);
        }
    }
    for (var t = skip; t < count; t += strip.tiles_per_row) {
        let tile = tiles[t];
        let decision = decisions[tile.span];
        if enters(decision.status) {
            var center = 0u;
            if CENTERED {
                center = columns[strip.tiles_per_row + coordinate];
            }
            add_product(&sum, clipped(load1(tile, element), center, decision), weights[row]);
        }
        row++;
    }
    pass_carries(&sum);
    if row == strip.clients {
        means[coordinate] = mean_of(&sum, coordinate);
        return;
    }
    for (var i = 0u; i < CELLS; i++) {
        sums[i * strip.length + coordinate - strip.first] = u32(sum[i]);
    }
}

// Rows that are zeroed, refused, or kept with NaN or Inf, do not count.
fn enters(status: u32) -> bool {
    return status != ZEROED && status != KEPT && status != REFUSED;
}

// The bits that the clip stage would write.
fn clipped(bits: u32, center: u32, decision: Decision) -> u32 {
    if CENTERED && decision.status == CLIPPED {
        return scaled_around(bits, center, decision);
    }
    if decision.status == CLIPPED {
        return scaled(vec4<u32>(bits), decision).x;
    }
    if decision.status == CUT {
        return cut(vec4<u32>(bits), decision.bound).x;
    }
    return bits;
}

// Adds weight * value. NaN and Inf, which only rows out of scope may hold here, count as 0.
fn add_product(sum: ptr<function, Cells>, value: u32, weight: u32) {
    let magnitude = value & MAGNITUDE;
    if magnitude == 0u || magnitude >= INFINITY || weight == 0u {
        return;
    }
    let position = exponent_of(magnitude) + exponent_of(weight) + 1u;
    let product = shl64(mul64(mantissa_of(magnitude), mantissa_of(weight)), position % 16u);
    let sign = select(1i, -1i, value != magnitude);
    let limb = position / 16u;
    (*sum)[limb] += sign * i32(product.x & 0xffffu);
    (*sum)[limb + 1u] += sign * i32(product.x >> 16u);
    (*sum)[limb + 2u] += sign * i32(product.y & 0xffffu);
    (*sum)[limb + 3u] += sign * i32(product.y >> 16u);
}

// Cuts all cells to limbs of 16 bits but the last, which keeps the sign.
fn pass_carries(sum: ptr<function, Cells>) {
    var carry = 0i;
    for (var i = 0u; i < CELLS - 1u; i++) {
        carry += (*sum)[i];
        (*sum)[i] = carry & 0xffffi;
        carry >>= 16u;
    }
    (*sum)[CELLS - 1u] += carry;
}

// The sum over the sum of the weights. Where nothing weighs anything, no run decided, or a row is refused, what
// changes nothing: the centre, or +0 without one.
fn mean_of(sum: ptr<function, Cells>, coordinate: u32) -> u32 {
    var neutral = 0u;
    if CENTERED {
        neutral = columns[strip.tiles_per_row + coordinate];
    }
    if atomicLoad(&weight_sum[SUMMED]) == 0u || atomicLoad(&weight_sum[REFUSAL]) != 0u {
        return neutral;
    }
    var divisor: Weight;
    var carry = 0u;
    for (var i = 0u; i < WEIGHT_CELLS; i++) {
        carry += atomicLoad(&weight_sum[i]);
        divisor[i] = carry & 0xffffu;
        carry >>= 16u;
    }
    var sign = 0u;
    if (*sum)[CELLS - 1u] < 0i {
        sign = 0x80000000u;
        negate(sum);
    }
    let length = sum_length(sum);
    let divisor_length = weight_length(&divisor);
    if divisor_length == 0u {
        return neutral;
    }
    if length == 0u {
        return 0u;
    }
    return sign | quotient(sum, length, &divisor, divisor_length);
}

fn negate(sum: ptr<function, Cells>) {
    for (var i = 0u; i < CELLS; i++) {
        (*sum)[i] = -(*sum)[i];
    }
    pass_carries(sum);
}

// The length in bits.
fn sum_length(sum: ptr<function, Cells>) -> u32 {
    for (var i = CELLS; i > 0u; i--) {
        if (*sum)[i - 1u] != 0i {
            return 16u * i - (countLeadingZeros(u32((*sum)[i - 1u])) - 16u);
        }
    }
    return 0u;
}

fn weight_length(divisor: ptr<function, Weight>) -> u32 {
    for (var i = WEIGHT_CELLS; i > 0u; i--) {
        if (*divisor)[i - 1u] != 0u {
            return 16u * i - (countLeadingZeros((*divisor)[i - 1u]) - 16u);
        }
    }
    return 0u;
}

// The bits of sum * 2^-299 / (divisor * 2^-149), rounded to nearest even; the sum becomes the remainder.
//
// Long division: the quotient has 25 or 26 bits where an f32 has 24, or is counted in halves of the smallest
// subnormal; the remainder says on which side of a tie it lies.
fn quotient(
    sum: ptr<function, Cells>,
    length: u32,
    divisor: ptr<function, Weight>,
    divisor_length: u32,
) -> u32 {
    // Limbs above and below these are 0: weights are mostly small integers.
    let top = (divisor_length - 1u) / 16u;
    var bottom = 0u;
    while (*divisor)[bottom] == 0u {
        bottom++;
    }
    let shift = max(length, divisor_length + 25u) - divisor_length - 25u;
    var quotient = 0u;
    for (var bit = 26u; bit > 0u; bit--) {
        let by = shift + bit - 1u;
        if !less(sum, divisor, by, bottom, top) {
            subtract(sum, divisor, by, bottom, top);
            quotient |= 1u << (bit - 1u);
        }
    }
    let bits = 32u - countLeadingZeros(quotient);
    let drop = max(bits, 25u) - 24u;
    let mantissa = quotient >> drop;
    let low = quotient & ((1u << drop) - 1u);
    let half = 1u << (drop - 1u);
    let up = low > half || (low == half && (sum_length(sum) != 0u || (mantissa & 1u) == 1u));
    // The implicit bit of the mantissa, and its carry, add to the exponent field.
    return ((shift + drop - 1u) << 23u) + mantissa + select(0u, 1u, up);
}

// A limb of divisor << by, counted from limb by / 16; index is from bottom to top + 1.
fn shifted_limb(divisor: ptr<function, Weight>, index: u32, by: u32, bottom: u32, top: u32) -> u32 {
    var high = 0u;
    var low = 0u;
    if index <= top {
        high = (*divisor)[index];
    }
    if index > bottom {
        low = (*divisor)[index - 1u];
    }
    let bits = by % 16u;
    return ((high << bits) | (low >> (16u - bits))) & 0xffffu;
}

// Whether the sum, which is below divisor << (by + 1), is below divisor << by.
fn less(sum: ptr<function, Cells>, divisor: ptr<function, Weight>, by: u32, bottom: u32, top: u32) -> bool {
    for (var i = top + 2u; i > bottom; i--) {
        let ours = u32((*sum)[i - 1u + by / 16u]);
        let theirs = shifted_limb(divisor, i - 1u, by, bottom, top);
        if ours != theirs {
            return ours < theirs;
        }
    }
    return false;
}

// sum -= divisor << by
fn subtract(sum: ptr<function, Cells>, divisor: ptr<function, Weight>, by: u32, bottom: u32, top: u32) {
    var borrow = 0i;
    for (var i = bottom; i <= top + 1u; i++) {
        let at = i + by / 16u;
        let limb = (*sum)[at] - i32(shifted_limb(divisor, i, by, bottom, top)) + borrow;
        (*sum)[at] = limb & 0xffffi;
        borrow = limb >> 16u;
    }
}
