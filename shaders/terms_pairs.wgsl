// The sums of an invocation's terms, in pairs of f32.

struct Terms {
    high: vec4<f32>,
    low: vec4<f32>,
    size: vec4<f32>,
}

fn terms_from(sum: Sums) -> Terms {
    return Terms(sum.high, sum.low, sum.size);
}

fn with_terms(terms: Terms, value: vec4<f32>, weight: f32) -> Terms {
    let term = exact_product(value, weight);
    let sum = add_signed(terms.high, terms.low, term.high, term.low);
    return Terms(sum.high, sum.low, terms.size + abs(term.high));
}

fn sums_of(terms: Terms, largest: vec4<u32>) -> Sums {
    return Sums(terms.high, terms.low, terms.size, largest);
}
