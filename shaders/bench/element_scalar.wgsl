alias Element = f32;

const WIDTH: u32 = 1u;

override WORKGROUP: u32 = 256u;

fn total(element: Element) -> f32 {
    return element;
}

fn bits(element: Element) -> u32 {
    return bitcast<u32>(element);
}
