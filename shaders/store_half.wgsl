// Values that are halves, on their way back; what lies past the end of a tile stays as it is.
fn store4(tile: Tile, group: u32, bits: vec4<u32>) {
    let old = halves4(tile, group);
    let left = tile.count - group * 4u;
    var words = narrowed(bits);
    if left == 1u { words.x = (words.x & 0xffffu) | (old.x & 0xffff0000u); }
    if left == 3u { words.y = (words.y & 0xffffu) | (old.y & 0xffff0000u); }
    store_words(tile, group, words, left);
}

// A group that lies in the tile as a whole.
fn store_whole4(tile: Tile, group: u32, bits: vec4<u32>) {
    store_words(tile, group, narrowed(bits), 4u);
}
