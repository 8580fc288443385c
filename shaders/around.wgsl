// What a decision makes of an element that is clipped around a centre, on bits.

// A number of 24 bits, or 0: ±mantissa * 2^exponent in units of 2^-149.
struct Number {
    sign: u32,
    mantissa: u32,
    exponent: i32,
}

fn number(bits: u32) -> Number {
    let magnitude = bits & MAGNITUDE;
    let sign = bits & 0x80000000u;
    if magnitude >= 0x800000u {
        return Number(sign, (magnitude & 0x7fffffu) | 0x800000u, i32(magnitude >> 23u) - 1);
    }
    if magnitude == 0u {
        return Number(sign, 0u, 0);
    }
    let shift = countLeadingZeros(magnitude) - 8u;
    return Number(sign, magnitude << shift, -i32(shift));
}

fn smaller(a: Number, b: Number) -> bool {
    return a.mantissa == 0u || (b.mantissa != 0u
        && (a.exponent < b.exponent || (a.exponent == b.exponent && a.mantissa < b.mantissa)));
}

// A sum of two numbers, exact but for bits far below: its magnitude is that of `bits`, in units of
// 2^exponent, and where `more` something below one unit on top.
struct Sum {
    sign: u32,
    bits: vec2<u32>,
    exponent: i32,
    more: bool,
}

fn sum_of(a: Number, b: Number) -> Sum {
    var large = a;
    var small = b;
    if smaller(a, b) {
        large = b;
        small = a;
    }
    let gap = u32(min(large.exponent - select(large.exponent, small.exponent, small.mantissa != 0u), 63));
    let shifted = shr64_any(vec2<u32>(0u, small.mantissa), gap);
    let lost = any(shl64_any(shifted, gap) != vec2<u32>(0u, small.mantissa));
    let high = vec2<u32>(0u, large.mantissa);
    let exponent = large.exponent - 32;
    if large.sign == small.sign || small.mantissa == 0u {
        return Sum(large.sign, add64(high, shifted), exponent, lost);
    }
    // What was lost is taken off: one unit less, and something on top.
    return Sum(large.sign, sub64(sub64(high, shifted), vec2<u32>(select(0u, 1u, lost), 0u)), exponent, lost);
}

fn shr64_any(a: vec2<u32>, n: u32) -> vec2<u32> {
    if n >= 32u {
        return vec2<u32>(a.y >> (n - 32u), 0u);
    }
    return shr64(a, n);
}

fn shl64_any(a: vec2<u32>, n: u32) -> vec2<u32> {
    if n >= 32u {
        return vec2<u32>(0u, a.x << (n - 32u));
    }
    return shl64(a, n);
}

fn length64(a: vec2<u32>) -> u32 {
    return select(32u - countLeadingZeros(a.x), 64u - countLeadingZeros(a.y), a.y != 0u);
}

// Cut to 24 bits, towards 0.
fn cut_number(sum: Sum) -> Number {
    let length = length64(sum.bits);
    if length == 0u {
        return Number(sum.sign, 0u, 0);
    }
    if length <= 24u {
        return Number(sum.sign, sum.bits.x << (24u - length), sum.exponent - i32(24u - length));
    }
    let shift = length - 24u;
    return Number(sum.sign, shr64_any(sum.bits, shift).x, sum.exponent + i32(shift));
}

// center + factor * (value - center), in three steps that round towards the centre (NUMERICS.md, "Around a
// centre").
fn scaled_around(value: u32, center: u32, decision: Decision) -> u32 {
    // NaN and Inf stay what they are.
    if (value & MAGNITUDE) >= INFINITY {
        return value;
    }
    let v = number(center);
    let negated = Number(v.sign ^ 0x80000000u, v.mantissa, v.exponent);
    let difference = cut_number(sum_of(number(value), negated));
    if difference.mantissa == 0u {
        return value;
    }
    if decision.mantissa == 0u {
        return center;
    }
    let product = mul64(difference.mantissa, (decision.mantissa & 0x7fffffu) | 0x800000u);
    let step = cut_number(Sum(difference.sign, product, difference.exponent + decision.exponent - 23, false));
    return rounded_towards(v, step);
}

// The f32 nearest to v + step on the side of v.
fn rounded_towards(v: Number, step: Number) -> u32 {
    let sum = sum_of(v, step);
    let length = length64(sum.bits);
    if length == 0u {
        // Where something is left below a unit the larger number is far longer than that.
        return 0u;
    }
    // Towards v is away from 0 where the step shortens v without turning it round.
    let away = v.mantissa != 0u && v.sign != step.sign && sum.sign == v.sign;
    // The spacing of f32 at the sum, which is at least that of the subnormals.
    let grid = max(sum.exponent + i32(length) - 24, 0);
    let shift = grid - sum.exponent;
    var mantissa = 0u;
    var rest = sum.more;
    if shift <= 0 {
        mantissa = sum.bits.x << u32(-shift);
    } else if shift < 64 {
        let cut = shr64_any(sum.bits, u32(shift));
        mantissa = cut.x;
        rest = rest || any(shl64_any(cut, u32(shift)) != sum.bits);
    } else {
        rest = true;
    }
    // A carry out of the mantissa adds to the exponent field, as it should.
    mantissa += select(0u, 1u, away && rest);
    return sum.sign | ((u32(grid) << 23u) + mantissa);
}
