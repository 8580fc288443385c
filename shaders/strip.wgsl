// What the kernels of the mean share: what a dispatch works on, and the words before the weights.

// The coordinates of some tiles of a row, in all rows that a window holds of them; of mean_exact some places in the list of
// coordinates that are open.
struct Strip {
    clients: u32,
    spans_per_row: u32,
    // The tiles of a row follow each other, so the k-th tile of row r has the slot r * tiles_per_row + k.
    tiles_per_row: u32,
    // The first tile of a row that belongs to the strip, and their number.
    first_tile: u32,
    tiles: u32,
    // Workgroups for each tile.
    blocks: u32,
    // The first coordinate or place, and their number.
    first: u32,
    length: u32,
    // Rows that are summed together, and how many such parts the batch has; 0 where every mean takes the exact sum.
    rows: u32,
    parts: u32,
    // Bounds the error of a fast sum, relative to the sum of the magnitudes.
    error: f32,
}

@group(0) @binding(13) var<uniform> strip: Strip;

// The words before the weights: the limbs of their sum;
const WEIGHT_CELLS: u32 = 20u;
// 1 once the weights are summed; 2^32 - 1 less the first row that is refused, or 0;
const SUMMED: u32 = WEIGHT_CELLS;
const REFUSAL: u32 = WEIGHT_CELLS + 1u;
// whether one of them is so small that a device may flush some of its bits;
const TINY: u32 = WEIGHT_CELLS + 2u;
// their sum again as a pair of f32: 0 where the mean changes nothing, INFINITY where fast sums are not good enough.
const DIVISOR: u32 = WEIGHT_CELLS + 3u;
const WEIGHTS: u32 = WEIGHT_CELLS + 5u;

// Rows that are zeroed, refused, or kept with NaN or Inf, do not count.
fn enters(status: u32) -> bool {
    return status != ZEROED && status != KEPT && status != REFUSED;
}
