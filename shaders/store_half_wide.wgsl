fn store_words(tile: Tile, group: u32, words: vec2<u32>, left: u32) {
    let index = tile.start / 4u + group;
    if left > 2u {
        data[index] = words;
    } else {
        data[index].x = words.x;
    }
}
