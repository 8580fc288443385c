// An invocation's part of a tile, summed in pairs of f32.

// Squares that one f32 sum takes before it joins the invocation's pair; the error bound relies on it.
const CHAIN: u32 = 8u;

// Groups first, first + step, … of a tile; those that are not whole come to the first invocation.
fn sum_part(tile: Tile, first: u32, step: u32) -> Partial {
    let whole = whole_groups(tile);
    var total = Pair(0.0, 0.0);
    var largest = vec4<u32>();
    var group = first;
    while group < whole {
        var sums = vec4<f32>();
        var lost = vec4<f32>();
        for (var link = 0u; (link < CHAIN) & (group < whole); link++) {
            add_whole(tile, group, &sums, &lost, &largest);
            group += step;
        }
        total = add_pairs(total, joined_chains(sums, lost));
    }
    if first == 0u {
        for (group = whole; group < groups(tile); group++) {
            var sums = vec4<f32>();
            var lost = vec4<f32>();
            add_group(load4(tile, group), tile, group, &sums, &lost, &largest);
            total = add_pairs(total, joined_chains(sums, lost));
        }
    }
    return Partial(total.high, total.low, largest_of(largest));
}

fn add_whole(
    tile: Tile,
    group: u32,
    sums: ptr<function, vec4<f32>>,
    lost: ptr<function, vec4<f32>>,
    largest: ptr<function, vec4<u32>>,
) {
    if CENTERED {
        add_group(whole4(tile, group), tile, group, sums, lost, largest);
    } else {
        let magnitude = magnitudes4(tile, group);
        *largest = max(*largest, magnitude);
        add_squares(magnitude, sums, lost);
    }
}

fn add_group(
    value: vec4<u32>,
    tile: Tile,
    group: u32,
    sums: ptr<function, vec4<f32>>,
    lost: ptr<function, vec4<f32>>,
    largest: ptr<function, vec4<u32>>,
) {
    let magnitude = value & vec4<u32>(MAGNITUDE);
    *largest = max(*largest, magnitude);
    if CENTERED {
        let center = center4(tile, group, params.tiles_per_row);
        *largest = max(*largest, center & vec4<u32>(MAGNITUDE));
        add_square_differences(value, center, sums, lost);
    } else {
        add_squares(magnitude, sums, lost);
    }
}

fn joined_chains(sums: vec4<f32>, lost: vec4<f32>) -> Pair {
    let left = add_pairs(renormalise(sums.x, lost.x), renormalise(sums.y, lost.y));
    let right = add_pairs(renormalise(sums.z, lost.z), renormalise(sums.w, lost.w));
    return add_pairs(left, right);
}

// Adds the squares of four magnitudes to four sums, each a rounded sum and what rounding lost.
fn add_squares(magnitude: vec4<u32>, sums: ptr<function, vec4<f32>>, lost: ptr<function, vec4<f32>>) {
    // On the bits, since a compiler may reorder multiplications. Zeros and subnormals become less than 2^-102, whose
    // squares are nothing; what is too large to scale becomes nonsense, but then the span does not use this sum.
    let bits = magnitude + vec4<u32>(PRESCALE << 23u);
    if HALVES {
        let x = bitcast<vec4<f32>>(bits);
        add_terms(opaque4(x * x), vec4<f32>(), sums, lost);
    } else {
        add_scaled_squares(bits, sums, lost);
    }
}

// Adds the squares of four differences. A difference rounds to x and loses y, so its square is x² + 2xy but
// for y², which is below 2^-48 of it.
fn add_square_differences(
    value: vec4<u32>,
    center: vec4<u32>,
    sums: ptr<function, vec4<f32>>,
    lost: ptr<function, vec4<f32>>,
) {
    let a = bitcast<vec4<f32>>(prescaled(value & vec4<u32>(MAGNITUDE)) | (value & vec4<u32>(0x80000000u)));
    let b = bitcast<vec4<f32>>(prescaled(center & vec4<u32>(MAGNITUDE)) | (~center & vec4<u32>(0x80000000u)));
    // Knuth's TwoSum.
    let x = opaque4(a + b);
    let of_b = opaque4(x - a);
    let y = (a - opaque4(x - of_b)) + (b - of_b);
    *lost += (x + x) * y;
    add_scaled_squares(bitcast<vec4<u32>>(x) & vec4<u32>(MAGNITUDE), sums, lost);
}

fn prescaled(magnitude: vec4<u32>) -> vec4<u32> {
    let normal = magnitude >= vec4<u32>(0x800000u);
    return select(vec4<u32>(), magnitude + vec4<u32>(PRESCALE << 23u), normal);
}

fn add_scaled_squares(bits: vec4<u32>, sums: ptr<function, vec4<f32>>, lost: ptr<function, vec4<f32>>) {
    let x = bitcast<vec4<f32>>(bits);
    let square = opaque4(x * x);
    // Veltkamp's split by masking: both halves have 12 bits, so all their products are exact.
    let head = bitcast<vec4<f32>>(bits & vec4<u32>(0xfffff000u));
    let tail = x - head;
    let square_error = ((head * head - square) + (head + head) * tail) + tail * tail;
    add_terms(square, square_error, sums, lost);
}

// Adds four terms that are not negative, and what they lost before.
fn add_terms(
    term: vec4<f32>,
    term_error: vec4<f32>,
    sums: ptr<function, vec4<f32>>,
    lost: ptr<function, vec4<f32>>,
) {
    let larger = max(*sums, term);
    let smaller = min(*sums, term);
    let sum = opaque4(larger + smaller);
    let sum_error = smaller - opaque4(sum - larger);
    *lost += sum_error + term_error;
    *sums = sum;
}

// What a square loses where a device flushes subnormals is below 2^-bits, prescaled.
fn bits_before_flushed() -> i32 {
    return 122;
}
