// The list of what fast sums leave open, for the kernels of exact sums.

// Settles a span, as settle() does, and lists it where it stays open: its tiles' place there is the result, and NO_SPAN for
// all others.
fn settle_or_list(index: u32, span: Span, sum: Partial, is_whole: bool) -> u32 {
    if !settle(index, span, sum, is_whole) {
        return NO_SPAN;
    }
    for (var limb = 0u; limb < LIMBS; limb++) {
        exact_sums[index * LIMBS + limb] = 0u;
    }
    atomicStore(&run[RUN_LIST + atomicAdd(&run[RUN_OPEN_SPANS], 1u)], index);
    return atomicAdd(&run[RUN_OPEN_TILES], span.slot_count);
}

// A tile and the span that it adds to: where rows are cut in segments both may be open, and both get it.
fn list_tile(place: u32, slot: u32, span: u32) {
    atomicStore(&run[open_tile(place, params.spans)], slot);
    atomicStore(&run[open_tile(place, params.spans) + 1u], span);
}
