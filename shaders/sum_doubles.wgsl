// An invocation's part of a tile, summed in f64, where the square of an f32 is exact; behind it the sum is a
// pair, as in sum_pairs.wgsl. For devices that have f64 and are not slow at it.

// Whether a sum looks for the largest magnitude too. Where not, the sum itself tells that it is one of finite elements below LARGEST that are not all
// zero: it is a number above zero and below 2^95 then, since no square is negative. Every device is tried with NaN and Inf before.
fn sees_largest() -> bool {
    return CENTERED || !SHOWS_NOT_FINITE;
}

// What stands for the largest magnitude of such a sum: not 0, which says that all are zeros, and below LARGEST, so that the greater of it
// and of what others have seen keeps what matters.
const FINITE: u32 = 1u;

// What one of `step` invocations walks through; groups that are not whole come to the first of them.
fn sum_part(tile: Tile, first: u32, step: u32) -> Partial {
    let whole = whole_groups(tile);
    var sums = vec4<f64>();
    var largest = vec4<u32>();
    var walk = walk_of(first, step, whole);
    if !sees_largest() && params.coordinates != 0u {
        // The largest is the norm, and no sum is.
        walk.count = 0u;
    }
    var at = 0u;
    // Four at a time, so that a turn of the loop costs little beside its loads; the error bound counts on it.
    for (; at + 3u < walk.count; at += 4u) {
        let a = whole_at(tile, group_of(walk, at));
        let b = whole_at(tile, group_of(walk, at + 1u));
        let c = whole_at(tile, group_of(walk, at + 2u));
        let d = whole_at(tile, group_of(walk, at + 3u));
        largest = max(largest, max(max(a.largest, b.largest), max(c.largest, d.largest)));
        sums += (a.squares + b.squares) + (c.squares + d.squares);
    }
    for (; at < walk.count; at++) {
        let a = whole_at(tile, group_of(walk, at));
        largest = max(largest, a.largest);
        sums += a.squares;
    }
    if first == 0u {
        for (var group = whole; group < groups(tile); group++) {
            let a = squares_at(load4(tile, group), tile, group);
            largest = max(largest, a.largest);
            sums += a.squares;
        }
    }
    // 2^48: squares of elements that are prescaled by 2^24.
    let total = ((sums.x + sums.y) + (sums.z + sums.w)) * 281474976710656.0lf;
    let high = f32(total);
    let low = f32(total - f64(opaque(high)));
    if sees_largest() {
        return Partial(high, low, largest_of(largest));
    }
    let field = bitcast<u32>(high) >> 23u;
    var seen = FINITE;
    if field == 0u || field >= 127u + 95u || (params.coordinates | params.force_exact) != 0u {
        seen = largest_part(tile, first, step);
    }
    return Partial(high, low, seen);
}

// The largest magnitude of what an invocation has summed.
fn largest_part(tile: Tile, first: u32, step: u32) -> u32 {
    let whole = whole_groups(tile);
    let walk = walk_of(first, step, whole);
    var largest = vec4<u32>();
    for (var at = 0u; at < walk.count; at++) {
        largest = max(largest, magnitudes4(tile, group_of(walk, at)));
    }
    if first == 0u {
        for (var group = whole; group < groups(tile); group++) {
            largest = max(largest, load4(tile, group) & vec4<u32>(MAGNITUDE));
        }
    }
    return largest_of(largest);
}

struct Squares {
    squares: vec4<f64>,
    // Of no meaning where no largest is looked for: signs are among the bits.
    largest: vec4<u32>,
}

fn whole_at(tile: Tile, group: u32) -> Squares {
    if CENTERED {
        return squares_at(whole4(tile, group), tile, group);
    }
    return squares_of(of_any_sign4(tile, group));
}

fn squares_at(value: vec4<u32>, tile: Tile, group: u32) -> Squares {
    let magnitude = value & vec4<u32>(MAGNITUDE);
    if !CENTERED {
        return squares_of(magnitude);
    }
    let center = center4(tile, group, params.tiles_per_row);
    let x = vec4<f64>(bitcast<vec4<f32>>(value)) - vec4<f64>(bitcast<vec4<f32>>(center));
    return Squares(x * x, max(magnitude, center & vec4<u32>(MAGNITUDE)));
}

fn squares_of(bits: vec4<u32>) -> Squares {
    let x = bitcast<vec4<f32>>(bits);
    // That of a half is exact in f32 already, but below 2^-126.
    if HALVES {
        return Squares(vec4<f64>(x * x), bits);
    }
    return Squares(vec4<f64>(x) * vec4<f64>(x), bits);
}

// What a square loses where a device flushes subnormals is below 2^-bits, prescaled.
fn bits_before_flushed() -> i32 {
    return select(122, 78, HALVES);
}
