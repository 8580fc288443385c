// Exact sums of squares, by a workgroup: integers in limbs of 16 bits.

var<workgroup> joined: array<atomic<u32>, LIMBS>;

alias Cells = array<i32, LIMBS>;

// Groups of four elements between carries: three pieces below 2^16 to a cell from each element, so 3 * 2^29.
const GROUPS: u32 = 2048u;

// The exact norm of a span, for invocation 0; all invocations of the workgroup take part.
fn exact_norm(local: u32, span: Span) -> Norm {
    let first = span.first_slot - tiles[0].slot;
    clear_joined(local);
    var sum = Cells();
    for (var tile = 0u; tile < span.slot_count; tile++) {
        add_squares_of(local, tiles[first + tile], &sum);
    }
    join_cells(&sum);
    var norm = Norm(0u, UNDECIDED);
    if local == 0u {
        var cells = Limbs();
        for (var limb = 0u; limb < LIMBS; limb++) {
            cells[limb] = atomicLoad(&joined[limb]);
        }
        norm = root_of_cells(&cells);
    }
    // Before the cells are cleared for the next span.
    workgroupBarrier();
    return norm;
}

fn clear_joined(local: u32) {
    for (var limb = local; limb < LIMBS; limb += WORKGROUP) {
        atomicStore(&joined[limb], 0u);
    }
    workgroupBarrier();
}

// Adds the squares of what an invocation has of a tile to its cells, and cuts these to limbs.
fn add_squares_of(local: u32, tile: Tile, sum: ptr<function, Cells>) {
    var added = 0u;
    for (var group = local; group < groups(tile); group += WORKGROUP) {
        let value = load4(tile, group);
        if CENTERED {
            let center = center4(tile, group, params.tiles_per_row);
            add_square_difference(sum, value.x, center.x);
            add_square_difference(sum, value.y, center.y);
            add_square_difference(sum, value.z, center.z);
            add_square_difference(sum, value.w, center.w);
        } else {
            add_product(sum, value.x, value.x, 0u, false);
            add_product(sum, value.y, value.y, 0u, false);
            add_product(sum, value.z, value.z, 0u, false);
            add_product(sum, value.w, value.w, 0u, false);
        }
        added++;
        if added == GROUPS {
            pass_carries(sum);
            added = 0u;
        }
    }
    pass_carries(sum);
}

// Adds the cells of all invocations, cut to limbs, to those that the workgroup shares.
fn join_cells(sum: ptr<function, Cells>) {
    for (var limb = 0u; limb < LIMBS; limb++) {
        if (*sum)[limb] != 0i {
            atomicAdd(&joined[limb], u32((*sum)[limb]));
        }
    }
    workgroupBarrier();
}

// (value - center)² as value² + center² - 2 * value * center: a difference of two f32 may have 277 bits.
fn add_square_difference(sum: ptr<function, Cells>, value: u32, center: u32) {
    add_product(sum, value, value, 0u, false);
    add_product(sum, center, center, 0u, false);
    add_product(sum, value, center, 1u, (value ^ center) < 0x80000000u);
}

// Adds 2^up * |a| * |b|, or takes it off: a number of up to 48 bits, to limbs of 16.
fn add_product(sum: ptr<function, Cells>, a: u32, b: u32, up: u32, take: bool) {
    let product = mul64(mantissa_of(a & MAGNITUDE), mantissa_of(b & MAGNITUDE));
    if all(product == vec2<u32>()) {
        return;
    }
    let position = exponent_of(a & MAGNITUDE) + exponent_of(b & MAGNITUDE) + up;
    let pieces = shl64(product, position & 15u);
    let sign = select(1i, -1i, take);
    let limb = position >> 4u;
    (*sum)[limb] += sign * i32(pieces.x & 0xffffu);
    (*sum)[limb + 1u] += sign * i32(pieces.x >> 16u);
    (*sum)[limb + 2u] += sign * i32(pieces.y & 0xffffu);
    (*sum)[limb + 3u] += sign * i32(pieces.y >> 16u);
}

// Cuts all cells to limbs of 16 bits. The sum is not negative, so no carry leaves the last.
fn pass_carries(sum: ptr<function, Cells>) {
    var carry = 0i;
    for (var limb = 0u; limb < LIMBS; limb++) {
        carry += (*sum)[limb];
        (*sum)[limb] = carry & 0xffffi;
        carry >>= 16u;
    }
}
