alias Element = f32;

const WIDTH: u32 = 1u;

override WORKGROUP: u32 = 256u;

fn sum_of_squares(element: Element) -> f32 {
    return element * element;
}

fn bits(element: Element) -> u32 {
    return bitcast<u32>(element);
}

fn times(element: Element, factor: f32) -> Element {
    return element * factor;
}

fn rescaled(element: Element) -> Element {
    return element * 0.5;
}
