// From the fast sum of a span to its norm, where that is certain.

struct Partial {
    high: f32,
    low: f32,
    // The bits of the largest magnitude: tells NaN, Inf, zero and what is out of the fast range. Or FINITE (sum_doubles.wgsl), where
    // the sum tells that all are finite and not all zero.
    largest: u32,
}

// Where a row's workgroup is all that it takes, no run is in part.
const IS_WHOLE: bool = true;

// Writes the norm of a span, and its decision where rows are decided alone; or writes nothing, and is true, where the norm stays
// open. A run that is not whole is none.
fn settle(index: u32, span: Span, sum: Partial, is_whole: bool) -> bool {
    if index == 0u && is_whole {
        atomicStore(&run[RUN_NORMS], 1u);
        if params.decides != 0u {
            atomicStore(&run[RUN_DECISIONS], 1u + params.non_finite);
        }
    }
    var norm = Norm(0u, OUT_OF_SCOPE);
    if span.in_scope != 0u && is_whole {
        norm = fast_norm(sum, span);
    }
    if norm.kind == UNDECIDED {
        return true;
    }
    if norm.kind == NON_FINITE {
        atomicOr(&run[RUN_NON_FINITE], 1u);
    }
    norms[index] = norm;
    decide_alone(index, norm, span);
    return false;
}

// From the largest magnitude that a sum has seen, by lanes of a vector.
fn largest_of(largest: vec4<u32>) -> u32 {
    let joined = max(max(largest.x, largest.y), max(largest.z, largest.w));
    return select(joined, max(joined, INFINITY), joined >= NOT_FINITE);
}

fn fast_norm(sum: Partial, span: Span) -> Norm {
    if sum.largest >= INFINITY {
        return Norm(0u, NON_FINITE);
    }
    if params.coordinates != 0u {
        return Norm(sum.largest, EXACT);
    }
    if sum.largest == 0u {
        return Norm(0u, EXACT);
    }
    if sum.largest >= select(LARGEST, LARGEST_OF_DIFFERENCE, CENTERED) || params.force_exact != 0u {
        return Norm(0u, UNDECIDED);
    }
    return certify(Pair(sum.high, sum.low), span);
}

// The norm of a sum known to a relative error and an absolute one, where that is enough to know it.
//
// The squares of all 25-bit integers, scaled, are the only sums at which the rounded norm or its
// comparison with the exact one changes: between two neighbours both are constant.
fn certify(sum: Pair, span: Span) -> Norm {
    let undecided = Norm(0u, UNDECIDED);
    let field = bitcast<u32>(sum.high) >> 23u;
    if field == 0u || field >= 255u {
        return undecided;
    }
    // The sum as an integer of 56 bits times 2^exponent.
    var integer = vec2<u32>(0u, (bitcast<u32>(sum.high) & 0x7fffffu) | 0x800000u);
    var exponent = i32(field) - 127 - 23 - 32;
    let low = bitcast<u32>(sum.low);
    let low_field = (low & MAGNITUDE) >> 23u;
    if low_field != 0u {
        // At most half a unit of high, so at most 2^31 here; what is shifted out is below 1.
        let down = field - low_field;
        if low_field + 24u > field {
            return undecided;
        }
        let mantissa = (low & 0x7fffffu) | 0x800000u;
        var aligned = vec2<u32>();
        if down <= 32u {
            aligned = shl64(vec2<u32>(mantissa, 0u), 32u - down);
        } else if down < 64u {
            aligned = vec2<u32>(mantissa >> (down - 32u), 0u);
        }
        if (low >> 31u) == 0u {
            integer = add64(integer, aligned);
        } else {
            integer = sub64(integer, aligned);
        }
    }
    if integer.y < 0x800000u {
        integer = shl64(integer, 1u);
        exponent -= 1;
    }
    // In units of 2^-298, the square of the least subnormal.
    exponent += 298 - 2 * i32(PRESCALE);
    let length = 56 + exponent;
    if length <= 49 {
        return undecided;
    }
    let scale = root_scale(length);
    // The radicand of 49 or 50 bits, and seven bits after the point.
    let radicand = shl64(integer, u32(exponent - 2 * scale + 7));
    // Flushed subnormals, for each element; in units of the radicand that is 2^-flushed.
    let flushed = 2 * scale + 2 * i32(PRESCALE) - (298 - bits_before_flushed() + 7);
    if flushed < 0 {
        return undecided;
    }
    let relative = (radicand.y >> 16u) * span.error_units + span.error_units;
    let error = vec2<u32>(relative + (span.length >> u32(min(flushed, 31))) + 8u, 0u);
    let root = root64(shr64(radicand, 7u));
    let below = shl64(square64(root), 7u);
    let above = shl64(square64(root + 1u), 7u);
    if !less64(add64(below, error), radicand) || !less64(add64(radicand, error), above) {
        return undecided;
    }
    // Even: just above a representable norm. Odd: past the middle between two, up to the next.
    return rounded(root, scale, select(ABOVE, BELOW, (root & 1u) == 1u));
}

fn rounded(root: u32, scale: i32, kind: u32) -> Norm {
    return Norm(((root + 1u) >> 1u) + (u32(scale + 1) << 23u), kind);
}
