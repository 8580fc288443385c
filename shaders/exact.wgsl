// Stage 1, the exact way, for the spans that the fast way left open: an integer sum of squares in limbs of
// 16 bits, and its correctly rounded root. Always dispatched, with few workgroups that go through the list of
// what is open: it is nearly always empty, so nothing has to be read back and no workgroup comes for nothing.
// Where all spans are short, one dispatch, a workgroup to each; else two: a workgroup to each tile, then the roots.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(5) var<storage, read_write> norms: array<Norm>;
@group(0) @binding(6) var<storage, read_write> limbs: array<atomic<u32>>;
@group(0) @binding(7) var<storage, read_write> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read> run: array<u32>;

var<workgroup> joined: array<atomic<u32>, LIMBS>;

alias Cells = array<i32, LIMBS>;

// Groups of four elements between carries: three pieces below 2^16 to a cell from each element, so 3 * 2^29.
const GROUPS: u32 = 2048u;

@compute @workgroup_size(WORKGROUP)
fn exact_tiles(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y;
    for (var place = linear(workgroup, workgroups); place < run[RUN_OPEN_TILES]; place += all) {
        // The tiles of a window lie side by side, those of other windows outside.
        let index = run[open_tile(place, params.spans)] - tiles[0].slot;
        if index < arrayLength(&tiles) {
            let tile = tiles[index];
            if tile.span != NO_SPAN {
                add_tile(local, tile, run[open_tile(place, params.spans) + 1u]);
            }
        }
    }
}

fn add_tile(local: u32, tile: Tile, span: u32) {
    clear_joined(local);
    var sum = Cells();
    add_squares(local, tile, &sum);
    join_cells(&sum);

    // A cell holds at most 256 * 2^16; cut to 16 bits again, it can be added by 65,536 tiles.
    for (var limb = local; limb < LIMBS; limb += WORKGROUP) {
        let cell = atomicLoad(&joined[limb]);
        add_cell(span * LIMBS + limb, cell & 0xffffu);
        add_cell(span * LIMBS + limb + 1u, cell >> 16u);
    }
    // Before the cells are cleared for the next tile.
    workgroupBarrier();
}

// Where one window holds all, and no span has many tiles: a workgroup takes a span alone, up to its root.
@compute @workgroup_size(WORKGROUP)
fn exact_few(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y;
    for (var place = linear(workgroup, workgroups); place < run[RUN_OPEN_SPANS]; place += all) {
        let index = run[RUN_LIST + place];
        let first = spans[index].first_slot - tiles[0].slot;
        clear_joined(local);
        var sum = Cells();
        for (var tile = 0u; tile < spans[index].slot_count; tile++) {
            add_squares(local, tiles[first + tile], &sum);
        }
        join_cells(&sum);
        for (var limb = local; limb < LIMBS; limb += WORKGROUP) {
            atomicStore(&limbs[index * LIMBS + limb], atomicLoad(&joined[limb]));
        }
        storageBarrier();
        if local == 0u {
            finish_span(index);
        }
        // Before the cells are cleared for the next span.
        workgroupBarrier();
    }
}

fn clear_joined(local: u32) {
    for (var limb = local; limb < LIMBS; limb += WORKGROUP) {
        atomicStore(&joined[limb], 0u);
    }
    workgroupBarrier();
}

// Adds the squares of what an invocation has of a tile to its cells, and cuts these to limbs.
fn add_squares(local: u32, tile: Tile, sum: ptr<function, Cells>) {
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

fn add_cell(index: u32, value: u32) {
    if value != 0u {
        atomicAdd(&limbs[index], value);
    }
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

@compute @workgroup_size(WORKGROUP)
fn exact_spans(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let all = workgroups.x * workgroups.y * WORKGROUP;
    for (var i = linear(workgroup, workgroups) * WORKGROUP + local; i < run[RUN_OPEN_SPANS]; i += all) {
        finish_span(run[RUN_LIST + i]);
    }
}

fn finish_span(index: u32) {
    var carry = 0u;
    var top = 0u;
    for (var limb = 0u; limb < LIMBS; limb++) {
        // At most 2^32 - 2^16 plus a carry of 16 bits.
        let cell = atomicLoad(&limbs[index * LIMBS + limb]) + carry;
        carry = cell >> 16u;
        atomicStore(&limbs[index * LIMBS + limb], cell & 0xffffu);
        if (cell & 0xffffu) != 0u {
            top = limb;
        }
    }
    let norm = root_of_limbs(index * LIMBS, top);
    norms[index] = norm;
    decide_alone(index, norm, spans[index]);
}

fn root_of_limbs(first: u32, top: u32) -> Norm {
    let length = i32(top * 16u + 32u - countLeadingZeros(atomicLoad(&limbs[first + top])));
    let scale = root_scale(length);
    var radicand = vec2<u32>();
    var inexact = false;
    if scale < 0 {
        // A sum below 2^48, shifted up by two bits.
        radicand = shl64(bits_from(first, 0u), 2u);
    } else {
        let position = 2u * u32(scale);
        radicand = bits_from(first, position);
        inexact = any_below(first, position);
    }
    let root = root64(radicand);
    let square = square64(root);
    let exact = !inexact && all(square == radicand);
    let even = root >> 1u;
    var wide = even;
    var kind = select(ABOVE, EXACT, exact);
    if (root & 1u) == 1u {
        // Past the middle: up. In the middle: to even.
        let up = !exact || (even & 1u) == 1u;
        wide = even + select(0u, 1u, up);
        kind = select(ABOVE, BELOW, up);
    }
    return Norm(wide + (u32(scale + 1) << 23u), kind);
}

// The up to 64 bits of a sum that begin at an even bit position; limbs past the top are 0.
fn bits_from(first: u32, position: u32) -> vec2<u32> {
    let limb = first + (position >> 4u);
    let shift = position & 15u;
    let low = atomicLoad(&limbs[limb]) | (atomicLoad(&limbs[limb + 1u]) << 16u);
    let high = atomicLoad(&limbs[limb + 2u]) | (atomicLoad(&limbs[limb + 3u]) << 16u);
    return shr64(vec2<u32>(low, high), shift);
}

fn any_below(first: u32, position: u32) -> bool {
    let limb = position >> 4u;
    var any = atomicLoad(&limbs[first + limb]) & ((1u << (position & 15u)) - 1u);
    for (var below = 0u; below < limb; below++) {
        any |= atomicLoad(&limbs[first + below]);
    }
    return any != 0u;
}
