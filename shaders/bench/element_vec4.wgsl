alias Element = vec4<f32>;

const WIDTH: u32 = 4u;

override WORKGROUP: u32 = 256u;

fn sum_of_squares(element: Element) -> f32 {
    let squares = element * element;
    return (squares.x + squares.y) + (squares.z + squares.w);
}

fn bits(element: Element) -> u32 {
    let integers = bitcast<vec4<u32>>(element);
    return integers.x + integers.y + integers.z + integers.w;
}

fn times(element: Element, factor: f32) -> Element {
    return element * factor;
}

fn rescaled(element: Element) -> Element {
    return element * 0.5;
}
