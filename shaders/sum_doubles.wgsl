// An invocation's part of a tile, summed in f64, where the square of an f32 is exact; behind it the sum is a
// pair, as in sum_pairs.wgsl. For devices that have f64 and are not slow at it.

// Groups first, first + step, … of a tile; those that are not whole come to the first invocation.
fn sum_part(tile: Tile, first: u32, step: u32) -> Partial {
    let whole = whole_groups(tile);
    var sums = vec4<f64>();
    var largest = vec4<u32>();
    var group = first;
    // Four at a time, so that a turn of the loop costs little beside its loads.
    for (; group + 3u * step < whole; group += 4u * step) {
        let a = group_at(whole4(tile, group), tile, group);
        let b = group_at(whole4(tile, group + step), tile, group + step);
        let c = group_at(whole4(tile, group + 2u * step), tile, group + 2u * step);
        let d = group_at(whole4(tile, group + 3u * step), tile, group + 3u * step);
        largest = max(largest, max(max(a.largest, b.largest), max(c.largest, d.largest)));
        sums += (a.squares + b.squares) + (c.squares + d.squares);
    }
    for (; group < whole; group += step) {
        let a = group_at(whole4(tile, group), tile, group);
        largest = max(largest, a.largest);
        sums += a.squares;
    }
    if first == 0u {
        for (group = whole; group < groups(tile); group++) {
            let a = group_at(load4(tile, group), tile, group);
            largest = max(largest, a.largest);
            sums += a.squares;
        }
    }
    // 2^48: squares of elements that are prescaled by 2^24.
    let total = ((sums.x + sums.y) + (sums.z + sums.w)) * 281474976710656.0lf;
    let high = f32(total);
    let low = f32(total - f64(opaque(high)));
    return Partial(high, low, max(max(largest.x, largest.y), max(largest.z, largest.w)));
}

struct Squares {
    squares: vec4<f64>,
    largest: vec4<u32>,
}

fn group_at(value: vec4<u32>, tile: Tile, group: u32) -> Squares {
    var x = vec4<f64>(bitcast<vec4<f32>>(value));
    var largest = value & vec4<u32>(MAGNITUDE);
    if CENTERED {
        let center = center4(tile, group, params.tiles_per_row);
        largest = max(largest, center & vec4<u32>(MAGNITUDE));
        x -= vec4<f64>(bitcast<vec4<f32>>(center));
    }
    return Squares(x * x, largest);
}
