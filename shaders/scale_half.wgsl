// Halves multiplied in place, in fewer steps than scaled() takes. The mantissa of a product is an integer of 23 bits, or 22,
// that has lost only what is far below a half: it is exact as an f32, and exponents are added as integers.

struct Quick {
    // The factor's 24 bits.
    mantissa: u32,
    // The exponent fields of that integer and of the half add up to that of their product and this.
    excess: u32,
}

// Whether the factor is one for that: below 1, and no zero. Where the limit is does not matter: smaller ones are rare.
fn is_quick(decision: Decision) -> bool {
    return decision.exponent < 0 && decision.exponent >= -90;
}

fn quick_of(decision: Decision) -> Quick {
    // The integer is the product of two mantissas in [1, 2), times 2^21.
    let excess = bitcast<u32>(127 + 21 - decision.exponent) << 23u;
    return Quick((decision.mantissa & 0x7fffffu) | 0x800000u, excess);
}

// Scales a group that lies in the tile as a whole.
fn scale_whole4(tile: Tile, group: u32, quick: Quick) {
    store_words(tile, group, scaled_words(halves4(tile, group), quick), 4u);
}
