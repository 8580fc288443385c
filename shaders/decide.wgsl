// The decision that a norm and its bound make: the specification is threshold::decide on the host.

struct Factor {
    mantissa: u32,
    exponent: i32,
}

const ONE: Factor = Factor(0x3f800000u, 0);
// The exponent is so small that every product vanishes.
const NOTHING: Factor = Factor(0u, -1000);

// `row_kind` is the kind of the whole row's norm; `refused`: the policy makes the batch an error.
fn decision_of(norm: Norm, row_kind: u32, bound: u32, refused: bool) -> Decision {
    var factor = ONE;
    var status = UNTOUCHED;
    if row_kind == OUT_OF_SCOPE {
        status = STATUS_OUT_OF_SCOPE;
    } else if refused {
        // The run fails when its report is read: until then no row is written, and no mean is taken.
        status = select(UNTOUCHED, REFUSED, row_kind == NON_FINITE);
    } else if row_kind == NON_FINITE {
        if params.non_finite == POLICY_KEEP {
            status = KEPT;
        } else {
            factor = NOTHING;
            status = ZEROED;
        }
    } else if exceeds(norm, bound) && params.coordinates != 0u {
        status = CUT;
    } else if exceeds(norm, bound) {
        // A subnormal norm may have been rounded down by much of itself.
        let above = norm.wide < 0x800000u && norm.kind == ABOVE;
        factor = factor_of(bound, norm.wide + select(0u, 1u, above));
        status = CLIPPED;
    }
    return Decision(norm, factor.mantissa, factor.exponent, bound, status);
}

// Writes the decision of a span as soon as its norm is there, where rows are decided alone.
fn decide_alone(index: u32, norm: Norm, span: Span) {
    if params.decides != 0u {
        decisions[index] = decision_of(norm, norm.kind, span.bound, false);
    }
}

// Whether the exact norm is greater than the bound.
fn exceeds(norm: Norm, bound: u32) -> bool {
    if bound == INFINITY {
        return false;
    }
    return norm.wide > bound || (norm.wide == bound && norm.kind == ABOVE);
}

// The largest 24-bit factor that is at most bound / norm * (1 - 2^-23), less up to two units of
// rounding, so that the clipped row's exact norm is at most the bound (NUMERICS.md, "The factor").
fn factor_of(bound: u32, wide: u32) -> Factor {
    if bound == 0u {
        return NOTHING;
    }
    let a = normalised(bound);
    let b = normalised(wide);
    let less = a.x < b.x;
    var remainder = select(a.x, a.x << 1u, less);
    var exponent = i32(a.y) - i32(b.y) - select(0, 1, less);
    // Long division, a bit at a time: 2^25 <= quotient < 2^26.
    var quotient = 0u;
    for (var bit = 0u; bit < 26u; bit++) {
        quotient <<= 1u;
        if remainder >= b.x {
            remainder -= b.x;
            quotient |= 1u;
        }
        remainder <<= 1u;
    }
    quotient -= 8u;
    var mantissa = quotient >> 2u;
    if quotient < 0x2000000u {
        mantissa = quotient >> 1u;
        exponent -= 1;
    }
    return Factor((mantissa & 0x7fffffu) | 0x3f800000u, exponent);
}

// A mantissa of 24 bits and an exponent field, offset by 64 to stay positive for subnormals.
fn normalised(bits: u32) -> vec2<u32> {
    let field = bits >> 23u;
    let fraction = bits & 0x7fffffu;
    if field != 0u {
        return vec2<u32>(fraction | 0x800000u, field + 64u);
    }
    let shift = countLeadingZeros(fraction) - 8u;
    return vec2<u32>(fraction << shift, 65u - shift);
}
