// The partial sums of tiles, for the kernels behind.

// Whether a workgroup came for every tile in scope: this may have been recorded when there were fewer.
fn is_run_whole() -> bool {
    return params.tiles_in_scope <= partials[arrayLength(&partials) - 1u].largest;
}

// Those of a span that has few, joined by one invocation.
fn joined_partials(span: Span) -> Partial {
    var sum = Partial(0.0, 0.0, 0u);
    if span.in_scope != 0u {
        for (var slot = 0u; slot < span.slot_count; slot++) {
            let partial = partials[span.first_slot + slot];
            let pair = add_pairs(Pair(sum.high, sum.low), Pair(partial.high, partial.low));
            sum = Partial(pair.high, pair.low, max(sum.largest, partial.largest));
        }
    }
    return sum;
}
