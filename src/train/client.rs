//! A client: its images, its random numbers, its behaviour.

use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;

use super::data::{CLASSES, Examples};
use super::random::{Stream, generator};
use super::settings::Training;
use crate::attack::AdversaryMode;

#[derive(Debug)]
pub(super) struct Client {
    mode: AdversaryMode,
    examples: Examples,
    random: ChaCha8Rng,
    /// The images in the order in which they are drawn, and how many were.
    order: Vec<usize>,
    drawn: usize,
}

impl Client {
    /// A client that flips labels does so once and for all, in its own data.
    pub(super) fn new(seed: u64, index: usize, mode: AdversaryMode, mut examples: Examples) -> Self {
        examples.relabel(|label| mode.label(label, CLASSES));
        let order: Vec<usize> = (0..examples.len()).collect();
        let drawn = order.len();
        Self { mode, examples, random: generator(seed, Stream::Client(index)), order, drawn }
    }

    pub(super) const fn mode(&self) -> AdversaryMode {
        self.mode
    }

    /// The gradient of one local step: of the mean loss over the next batch, and hostile if the client is.
    pub(super) fn gradient(&mut self, training: &Training, params: &[f32], gradient: &mut [f32]) {
        let batch = self.next_batch(training.batch_size);
        training.model.gradient(params, &self.examples, &self.order[batch], gradient);
        self.mode.turn_gradient(gradient, training.boost);
    }

    /// The images are drawn without replacement; what is left over too few for a batch is shuffled back in.
    fn next_batch(&mut self, size: usize) -> std::ops::Range<usize> {
        let size = size.min(self.order.len());
        if self.drawn + size > self.order.len() {
            self.order.shuffle(&mut self.random);
            self.drawn = 0;
        }
        self.drawn += size;
        self.drawn - size..self.drawn
    }
}
