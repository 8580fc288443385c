alias Element = vec4<f32>;

const WIDTH: u32 = 4u;

override WORKGROUP: u32 = 256u;

fn total(element: Element) -> f32 {
    return (element.x + element.y) + (element.z + element.w);
}

fn bits(element: Element) -> u32 {
    let integers = bitcast<vec4<u32>>(element);
    return integers.x + integers.y + integers.z + integers.w;
}
