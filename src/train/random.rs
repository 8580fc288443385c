//! Random numbers: one independent ChaCha stream for each use, so that a use that draws more or less
//! does not shift the others.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// What random numbers are drawn for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stream {
    /// Test set and clients.
    Split,
    /// The model before the first round.
    Model,
    /// The batches of one client.
    Client(usize),
}

/// The generator of this stream.
pub(super) fn generator(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(match stream {
        Stream::Split => 0,
        Stream::Model => 1,
        Stream::Client(client) => 2 + client as u64,
    });
    generator
}
