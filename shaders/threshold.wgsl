// Stage 2: bound, norm and policies → one factor and status per span.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> spans: array<Span>;
@group(0) @binding(5) var<storage, read> norms: array<Norm>;
@group(0) @binding(7) var<storage, read_write> decisions: array<Decision>;
@group(0) @binding(8) var<storage, read> non_finite_rows: array<u32>;

struct Factor {
    mantissa: u32,
    exponent: i32,
}

const ONE: Factor = Factor(0x3f800000u, 0);
// The exponent is so small that every product vanishes.
const NOTHING: Factor = Factor(0u, -1000);

@compute @workgroup_size(WORKGROUP)
fn threshold(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let index = linear(workgroup, workgroups) * WORKGROUP + local;
    if index >= params.bounded {
        return;
    }
    let span = spans[index];
    let norm = norms[index];
    let row_kind = norms[span.row].kind;
    var factor = ONE;
    var status = UNTOUCHED;
    if row_kind == OUT_OF_SCOPE {
        status = STATUS_OUT_OF_SCOPE;
    } else if params.non_finite == POLICY_ERROR && non_finite_rows[0] != 0u {
        // The run fails when its report is read: until then no row is written.
        status = UNTOUCHED;
    } else if row_kind == NON_FINITE {
        if params.non_finite == POLICY_KEEP {
            status = KEPT;
        } else {
            factor = NOTHING;
            status = ZEROED;
        }
    } else if exceeds(norm, span.bound) {
        factor = factor_of(span.bound, norm.wide);
        status = CLIPPED;
    }
    decisions[index] = Decision(norm, factor.mantissa, factor.exponent, span.bound, status);
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
