fn store_words(tile: Tile, group: u32, words: vec2<u32>, left: u32) {
    let first = tile.start / 2u + group * 2u;
    data[first] = words.x;
    if left > 2u { data[first + 1u] = words.y; }
}
