// The sums of an invocation's terms in f64, where the product of two f32 is exact; they leave as pairs, as in terms_pairs.wgsl.

struct Terms {
    sum: vec4<f64>,
    size: vec4<f64>,
}

fn terms_from(sum: Sums) -> Terms {
    return Terms(vec4<f64>(sum.high) + vec4<f64>(sum.low), vec4<f64>(sum.size));
}

fn with_terms(terms: Terms, value: vec4<f32>, weight: f32) -> Terms {
    let term = vec4<f64>(value) * f64(weight);
    return Terms(terms.sum + term, terms.size + abs(term));
}

fn sums_of(terms: Terms, largest: vec4<u32>) -> Sums {
    let high = vec4<f32>(terms.sum);
    let low = vec4<f32>(terms.sum - vec4<f64>(opaque4(high)));
    return Sums(high, low, vec4<f32>(terms.size), largest);
}
