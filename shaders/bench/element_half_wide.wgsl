// Behind one of pair_*.wgsl.
alias Element = vec2<u32>;

const WIDTH: u32 = 4u;

override WORKGROUP: u32 = 256u;

fn sum_of_squares(element: Element) -> f32 {
    let values = vec4<f32>(widened(element.x), widened(element.y));
    let squares = values * values;
    return (squares.x + squares.y) + (squares.z + squares.w);
}

fn bits(element: Element) -> u32 {
    let halves = (element & vec2<u32>(0xffffu)) + (element >> vec2<u32>(16u));
    return halves.x + halves.y;
}

fn times(element: Element, factor: f32) -> Element {
    return vec2<u32>(narrowed(widened(element.x) * factor), narrowed(widened(element.y) * factor));
}

// Times minus one.
fn rescaled(element: Element) -> Element {
    return element ^ vec2<u32>(0x80008000u);
}
