// Two f16 in a word.
fn widened(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}

fn narrowed(values: vec2<f32>) -> u32 {
    return pack2x16float(values);
}
