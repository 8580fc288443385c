// Halves multiplied in place, in fewer steps than scaled() takes. The mantissa of the product is an integer that has lost
// only what is far below a half; as an f32 it is exact, and so is what powers of two make of it.

struct Quick {
    // The factor's 24 bits.
    mantissa: u32,
    // The power of two by which an integer of 23 bits becomes a factor.
    scale: f32,
}

// Whether the factor is one for that: below 1, and all powers of two normal.
fn is_quick(decision: Decision) -> bool {
    return decision.exponent < 0 && decision.exponent >= -90 && decision.mantissa != 0u;
}

fn quick_of(decision: Decision) -> Quick {
    let mantissa = (decision.mantissa & 0x7fffffu) | 0x800000u;
    return Quick(mantissa, bitcast<f32>(bitcast<u32>(127 - SCALED_BITS + decision.exponent) << 23u));
}

// Scales a group that lies in the tile as a whole.
fn scale_whole4(tile: Tile, group: u32, quick: Quick) {
    store_words(tile, group, scaled_words(halves4(tile, group), quick), 4u);
}
