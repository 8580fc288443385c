// Stage 3: spans that are clipped are multiplied in place, spans that are zeroed get +0. Tiles of all
// other spans leave at once: nothing of them is read or written.

@group(0) @binding(1) var<storage, read_write> data: array<Element>;
@group(0) @binding(2) var<storage, read> tiles: array<Tile>;
@group(0) @binding(7) var<storage, read> decisions: array<Decision>;

@compute @workgroup_size(WORKGROUP)
fn clip(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = linear(workgroup, workgroups);
    if index >= arrayLength(&tiles) {
        return;
    }
    let tile = tiles[index];
    if tile.span == NO_SPAN {
        return;
    }
    let decision = decisions[tile.span];
    let groups = (tile.count + 3u) / 4u;
    if decision.status == CLIPPED {
        for (var group = local; group < groups; group += WORKGROUP) {
            store4(tile, group, scaled(load4(tile, group), decision));
        }
    } else if decision.status == CUT {
        for (var group = local; group < groups; group += WORKGROUP) {
            store4(tile, group, cut(load4(tile, group), decision.bound));
        }
    } else if decision.status == ZEROED {
        for (var group = local; group < groups; group += WORKGROUP) {
            store4(tile, group, vec4<u32>());
        }
    }
}

// Magnitudes, as integers, cut to the bound; signs stay.
fn cut(bits: vec4<u32>, bound: u32) -> vec4<u32> {
    return (bits & vec4<u32>(0x80000000u)) | min(bits & vec4<u32>(MAGNITUDE), vec4<u32>(bound));
}

// factor * value, rounded to nearest even; a zero of the same sign where that would be subnormal.
//
// Mantissas are multiplied in [1, 4), where no device flushes or overflows and a single product is
// correctly rounded; exponents are added as integers.
fn scaled(bits: vec4<u32>, decision: Decision) -> vec4<u32> {
    let sign = bits & vec4<u32>(0x80000000u);
    let field = (bits & vec4<u32>(MAGNITUDE)) >> vec4<u32>(23u);
    let mantissa = bitcast<vec4<f32>>((bits & vec4<u32>(0x7fffffu)) | vec4<u32>(0x3f800000u));
    let product = bitcast<vec4<u32>>(mantissa * bitcast<f32>(decision.mantissa));
    let exponent = vec4<i32>(field + (product >> vec4<u32>(23u))) + vec4<i32>(decision.exponent - 127);
    let normal = (vec4<u32>(exponent) << vec4<u32>(23u)) | (product & vec4<u32>(0x7fffffu));
    let vanishes = exponent < vec4<i32>(1) | field == vec4<u32>(0u);
    return sign | select(normal, vec4<u32>(), vanishes);
}
