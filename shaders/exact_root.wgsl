// From an exact sum of squares to its norm.

alias Limbs = array<u32, LIMBS>;

// The correctly rounded root of a sum, whose cells are cut to limbs on the way.
fn root_of_cells(cells: ptr<function, Limbs>) -> Norm {
    var carry = 0u;
    var top = 0u;
    for (var limb = 0u; limb < LIMBS; limb++) {
        // At most 2^32 - 2^16 plus a carry of 16 bits.
        let cell = (*cells)[limb] + carry;
        carry = cell >> 16u;
        (*cells)[limb] = cell & 0xffffu;
        if (cell & 0xffffu) != 0u {
            top = limb;
        }
    }
    let length = i32(top * 16u + 32u - countLeadingZeros((*cells)[top]));
    let scale = root_scale(length);
    var radicand = vec2<u32>();
    var inexact = false;
    if scale < 0 {
        // A sum below 2^48, shifted up by two bits.
        radicand = shl64(bits_from(cells, 0u), 2u);
    } else {
        let position = 2u * u32(scale);
        radicand = bits_from(cells, position);
        inexact = any_below(cells, position);
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
fn bits_from(limbs: ptr<function, Limbs>, position: u32) -> vec2<u32> {
    let limb = position >> 4u;
    let shift = position & 15u;
    let low = (*limbs)[limb] | ((*limbs)[limb + 1u] << 16u);
    let high = (*limbs)[limb + 2u] | ((*limbs)[limb + 3u] << 16u);
    return shr64(vec2<u32>(low, high), shift);
}

fn any_below(limbs: ptr<function, Limbs>, position: u32) -> bool {
    let limb = position >> 4u;
    var any = (*limbs)[limb] & ((1u << (position & 15u)) - 1u);
    for (var below = 0u; below < limb; below++) {
        any |= (*limbs)[below];
    }
    return any != 0u;
}
