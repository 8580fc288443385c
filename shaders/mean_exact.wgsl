// Behind the fast means, those that they left open: sum and quotient in integers.
//
// A sum lies in cells of 32 bits that hold limbs of 16: a limb takes the pieces of thousands of products before carries have to
// be passed on. Always dispatched, with few workgroups that go through the list.

@group(0) @binding(1) var<storage, read> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(7) var<storage, read> decisions: array<Decision>;
@group(0) @binding(14) var<storage, read> weights: array<u32>;
// How many coordinates are open, and which.
@group(0) @binding(15) var<storage, read> open: array<u32>;
// Sums of rows in several windows, between the dispatches.
@group(0) @binding(17) var<storage, read_write> sums: array<u32>;
@group(0) @binding(18) var<storage, read_write> means: array<u32>;

// A product of two f32 is an integer in units of 2^-298, and one bit more rounds the quotient: 2^28 products
// below 2^256 make 583 bits. The last limb is the sign's.
const CELLS: u32 = 38u;

alias Cells = array<i32, CELLS>;
alias Weight = array<u32, WEIGHT_CELLS>;

// The rows that a window has of a coordinate.
struct Rows {
    coordinate: u32,
    // Its place in its tile, and the first of these tiles.
    element: u32,
    first_tile: u32,
    // The first row; how many there are.
    row: u32,
    count: u32,
}

fn rows_of(coordinate: u32) -> Rows {
    let column = column_of(coordinate);
    // The window begins anywhere in a row.
    let slot = tiles[0].slot;
    let skip = (column + strip.tiles_per_row - slot % strip.tiles_per_row) % strip.tiles_per_row;
    let left = arrayLength(&tiles) - min(skip, arrayLength(&tiles));
    let count = (left + strip.tiles_per_row - 1u) / strip.tiles_per_row;
    return Rows(coordinate, coordinate - starts_and_center[column], skip, (slot + skip) / strip.tiles_per_row, count);
}

// One coordinate for each invocation.
@compute @workgroup_size(WORKGROUP)
fn mean_exact(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y * WORKGROUP;
    let end = min(strip.first + strip.length, open[0]);
    for (var place = strip.first + linear(workgroup, workgroups) * WORKGROUP + local; place < end; place += all) {
        let rows = rows_of(open[1u + place]);
        if rows.count > 0u {
            var sum = Cells();
            add_rows(&sum, rows, 0u, 1u);
            pass_carries(&sum);
            settle_exactly(&sum, rows, place);
        }
    }
}

var<workgroup> joined: array<atomic<i32>, CELLS>;

// Of many rows, a workgroup shares those of a coordinate.
@compute @workgroup_size(WORKGROUP)
fn mean_exact_many(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y;
    let end = min(strip.first + strip.length, open[0]);
    for (var place = strip.first + linear(workgroup, workgroups); place < end; place += all) {
        for (var i = local; i < CELLS; i += WORKGROUP) {
            atomicStore(&joined[i], 0i);
        }
        workgroupBarrier();
        let rows = rows_of(open[1u + place]);
        var sum = Cells();
        // All rows of a dispatch fit a cell, whoever adds them.
        add_rows(&sum, rows, local, WORKGROUP);
        for (var i = 0u; i < CELLS; i++) {
            if sum[i] != 0i {
                atomicAdd(&joined[i], sum[i]);
            }
        }
        workgroupBarrier();
        if local == 0u && rows.count > 0u {
            for (var i = 0u; i < CELLS; i++) {
                sum[i] = atomicLoad(&joined[i]);
            }
            pass_carries(&sum);
            settle_exactly(&sum, rows, place);
        }
        // Before the cells are cleared for the next coordinate.
        workgroupBarrier();
    }
}

// Adds rows first, first + step, … of those that the window has.
fn add_rows(sum: ptr<function, Cells>, rows: Rows, first: u32, step: u32) {
    var center = 0u;
    if CENTERED {
        center = starts_and_center[strip.tiles_per_row + rows.coordinate];
    }
    for (var i = first; i < rows.count; i += step) {
        let tile = tiles[rows.first_tile + i * strip.tiles_per_row];
        let decision = decisions[tile.span];
        if enters(decision.status) {
            add_product(sum, clipped(load1(tile, rows.element), center, decision), weights[WEIGHTS + rows.row + i]);
        }
    }
}

// The mean where the window has the last of the rows; else the sum waits for the others.
fn settle_exactly(sum: ptr<function, Cells>, rows: Rows, place: u32) {
    let at = place - strip.first;
    if rows.row > 0u {
        for (var i = 0u; i < CELLS; i++) {
            (*sum)[i] += i32(sums[i * strip.length + at]);
        }
        pass_carries(sum);
    }
    if rows.row + rows.count == strip.clients {
        means[rows.coordinate] = mean_of(sum);
        return;
    }
    for (var i = 0u; i < CELLS; i++) {
        sums[i * strip.length + at] = u32((*sum)[i]);
    }
}

// The tile of a row that holds a coordinate: the last one that begins at it or before.
fn column_of(coordinate: u32) -> u32 {
    var low = 0u;
    var high = strip.tiles_per_row;
    while low + 1u < high {
        let middle = (low + high) / 2u;
        if starts_and_center[middle] <= coordinate {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// The bits that the clip stage would write; what is not finite and not cut stays so, because products of integers would make numbers of it.
fn clipped(bits: u32, center: u32, decision: Decision) -> u32 {
    if decision.status == CUT {
        return cut(vec4<u32>(bits), decision.bound).x;
    }
    if (bits & MAGNITUDE) >= INFINITY {
        return bits;
    }
    if CENTERED && decision.status == CLIPPED {
        return scaled_around(bits, center, decision);
    }
    if decision.status == CLIPPED {
        return scaled(vec4<u32>(bits), decision).x;
    }
    return bits;
}

// Adds weight * value. NaN and Inf count as 0.
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

// The sum over the sum of the weights, which is not 0 where a coordinate is open.
fn mean_of(sum: ptr<function, Cells>) -> u32 {
    var divisor: Weight;
    for (var i = 0u; i < WEIGHT_CELLS; i++) {
        divisor[i] = weights[i];
    }
    var sign = 0u;
    if (*sum)[CELLS - 1u] < 0i {
        sign = 0x80000000u;
        negate(sum);
    }
    let length = sum_length(sum);
    if length == 0u {
        return 0u;
    }
    return sign | quotient(sum, length, &divisor, weight_length(&divisor));
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
