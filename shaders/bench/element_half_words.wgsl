// Behind one of pair_*.wgsl.
alias Element = u32;

const WIDTH: u32 = 2u;

override WORKGROUP: u32 = 256u;

fn sum_of_squares(element: Element) -> f32 {
    let values = widened(element);
    return values.x * values.x + values.y * values.y;
}

fn bits(element: Element) -> u32 {
    return (element & 0xffffu) + (element >> 16u);
}

fn times(element: Element, factor: f32) -> Element {
    return narrowed(widened(element) * factor);
}

// Times minus one.
fn rescaled(element: Element) -> Element {
    return element ^ 0x80008000u;
}
