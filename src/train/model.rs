//! The models and their gradients.
//!
//! Parameters are `f32`, as clients send them; inside of one gradient all arithmetic is `f64`, in a
//! fixed order and with `exp` from the `libm` crate: the same bits on every platform.

use std::fmt;
use std::str::FromStr;

use rand::{Rng, RngExt};

use super::data::{CLASSES, Examples, PIXELS};
use crate::error::Error;

/// What the clients train: the probabilities of the ten digits, `p = softmax(z)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Model {
    /// Softmax regression, `z = x·W + b`, pixels `x` from 0 to 16: 650 parameters.
    #[default]
    Softmax,
    /// One hidden layer, `z = max(0, x/16·V + c)·W + b`: `75 · hidden + 10` parameters. Its initial
    /// weights presume inputs of about 1, hence the 16.
    Perceptron {
        /// Hidden units.
        hidden: usize,
    },
}

impl Model {
    /// The number of parameters: the length of an update.
    #[must_use]
    pub const fn params(self) -> usize {
        match self {
            Self::Softmax => Dense::OUTPUT_OF_PIXELS.params(),
            Self::Perceptron { hidden } => Dense::hidden(hidden).params() + Dense::output(hidden).params(),
        }
    }

    /// The lengths of the layers, which are the segments of an update.
    pub(super) fn layers(self) -> Vec<usize> {
        match self {
            Self::Softmax => vec![Dense::OUTPUT_OF_PIXELS.params()],
            Self::Perceptron { hidden } => {
                vec![Dense::hidden(hidden).params(), Dense::output(hidden).params()]
            }
        }
    }

    /// `softmax` or `perceptron`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Softmax => "softmax",
            Self::Perceptron { .. } => "perceptron",
        }
    }

    /// The parameters before the first round: zeros for [`Model::Softmax`], whose loss is convex; for
    /// [`Model::Perceptron`] uniform weights within `±√(6 / (inputs + outputs))` (Glorot and Bengio
    /// 2010) and zero biases.
    pub(super) fn initial(self, random: &mut impl Rng) -> Vec<f32> {
        match self {
            Self::Softmax => vec![0.0; self.params()],
            Self::Perceptron { hidden } => {
                let mut params = Dense::hidden(hidden).initial(random);
                params.extend(Dense::output(hidden).initial(random));
                params
            }
        }
    }

    /// The gradient of the mean cross-entropy over these examples, `[params]`.
    pub(super) fn gradient(self, params: &[f32], examples: &Examples, batch: &[usize], gradient: &mut [f32]) {
        let mut sum = vec![0.0; params.len()];
        for &example in batch {
            self.add_gradient(params, examples.pixels(example), examples.label(example), &mut sum);
        }
        let count = batch.len() as f64;
        gradient.iter_mut().zip(sum).for_each(|(value, sum)| *value = (sum / count) as f32);
    }

    fn add_gradient(self, params: &[f32], pixels: &[f64], label: u8, sum: &mut [f64]) {
        let Self::Perceptron { hidden } = self else {
            let layer = Dense::OUTPUT_OF_PIXELS;
            let delta = loss_delta(&layer.apply(params, pixels), label);
            return layer.add_gradient(pixels, &delta, sum);
        };
        let (first, second) = (Dense::hidden(hidden), Dense::output(hidden));
        let (first_params, second_params) = params.split_at(first.params());
        let (first_sum, second_sum) = sum.split_at_mut(first.params());

        let pixels = to_unit(pixels);
        let units = rectified(first.apply(first_params, &pixels));
        let delta = loss_delta(&second.apply(second_params, &units), label);
        second.add_gradient(&units, &delta, second_sum);

        let mut back = second.back(second_params, &delta);
        back.iter_mut().zip(&units).filter(|(_, unit)| **unit == 0.0).for_each(|(back, _)| *back = 0.0);
        first.add_gradient(&pixels, &back, first_sum);
    }

    fn logits(self, params: &[f32], pixels: &[f64]) -> Vec<f64> {
        let Self::Perceptron { hidden } = self else {
            return Dense::OUTPUT_OF_PIXELS.apply(params, pixels);
        };
        let (first, second) = (Dense::hidden(hidden), Dense::output(hidden));
        let (first_params, second_params) = params.split_at(first.params());
        second.apply(second_params, &rectified(first.apply(first_params, &to_unit(pixels))))
    }

    /// The digit with the greatest logit, the first of equal ones; a NaN logit never wins, and where
    /// all are NaN there is no answer.
    pub(super) fn classify(self, params: &[f32], pixels: &[f64]) -> Option<u8> {
        let mut best: Option<(u8, f64)> = None;
        for (class, logit) in (0..).zip(self.logits(params, pixels)) {
            if !logit.is_nan() && best.is_none_or(|(_, greatest)| logit > greatest) {
                best = Some((class, logit));
            }
        }
        best.map(|(class, _)| class)
    }

    /// The share of examples whose digit the model finds; no answer counts as a wrong one.
    pub(super) fn accuracy(self, params: &[f32], examples: &Examples) -> f64 {
        let found = (0..examples.len())
            .filter(|&example| {
                self.classify(params, examples.pixels(example)) == Some(examples.label(example))
            })
            .count();
        found as f64 / examples.len() as f64
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Model {
    type Err = Error;

    /// `perceptron` has 32 hidden units.
    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::Softmax, Self::Perceptron { hidden: 32 }]
            .into_iter()
            .find(|model| model.name() == name)
            .ok_or_else(|| Error::Setting {
                name: "model",
                got: name.to_owned(),
                expected: "softmax or perceptron",
            })
    }
}

/// A layer `y = x·W + b`; its parameters are `[inputs + 1, outputs]`, the bias being the weights of one
/// more input that is always 1.
///
/// The outputs of one input lie next to each other, so the inner loops run over independent elements
/// and vectorise without any sum being reordered.
#[derive(Debug, Clone, Copy)]
struct Dense {
    inputs: usize,
    outputs: usize,
}

impl Dense {
    const OUTPUT_OF_PIXELS: Self = Self::output(PIXELS);

    const fn hidden(hidden: usize) -> Self {
        Self { inputs: PIXELS, outputs: hidden }
    }

    const fn output(inputs: usize) -> Self {
        Self { inputs, outputs: CLASSES as usize }
    }

    const fn params(self) -> usize {
        (self.inputs + 1) * self.outputs
    }

    fn initial(self, random: &mut impl Rng) -> Vec<f32> {
        let limit = (6.0 / (self.inputs + self.outputs) as f64).sqrt();
        let weights = (0..self.inputs * self.outputs).map(|_| (2.0 * random.random::<f64>() - 1.0) * limit);
        weights.map(|weight| weight as f32).chain(std::iter::repeat_n(0.0, self.outputs)).collect()
    }

    fn apply(self, params: &[f32], input: &[f64]) -> Vec<f64> {
        let (weights, biases) = params.split_at(self.inputs * self.outputs);
        let mut output: Vec<f64> = biases.iter().copied().map(f64::from).collect();
        for (&x, weights) in input.iter().zip(weights.chunks_exact(self.outputs)) {
            output.iter_mut().zip(weights).for_each(|(y, &w)| *y += x * f64::from(w));
        }
        output
    }

    /// Adds the outer product of input and `delta`, the loss's derivative by the output.
    fn add_gradient(self, input: &[f64], delta: &[f64], sum: &mut [f64]) {
        let inputs = input.iter().chain(std::iter::once(&1.0));
        for (&x, sums) in inputs.zip(sum.chunks_exact_mut(self.outputs)) {
            sums.iter_mut().zip(delta).for_each(|(sum, d)| *sum += x * d);
        }
    }

    /// The loss's derivative by the input.
    fn back(self, params: &[f32], delta: &[f64]) -> Vec<f64> {
        let weights = params.chunks_exact(self.outputs).take(self.inputs);
        weights.map(|weights| weights.iter().zip(delta).map(|(&w, d)| f64::from(w) * d).sum()).collect()
    }
}

/// Pixels from 0 to 1.
fn to_unit(pixels: &[f64]) -> Vec<f64> {
    pixels.iter().map(|pixel| pixel / 16.0).collect()
}

/// `max(0, x)`, except that NaN stays NaN: a broken model must not look like a silent one.
fn rectified(mut values: Vec<f64>) -> Vec<f64> {
    values.iter_mut().filter(|value| **value < 0.0).for_each(|value| *value = 0.0);
    values
}

/// The derivative of the cross-entropy by the logits: `softmax(z) − onehot(label)`.
fn loss_delta(logits: &[f64], label: u8) -> Vec<f64> {
    let mut delta = softmax(logits);
    if let Some(right) = delta.get_mut(usize::from(label)) {
        *right -= 1.0;
    }
    delta
}

/// `exp(z) / Σ exp(z)`, shifted by the greatest logit so that nothing overflows.
fn softmax(logits: &[f64]) -> Vec<f64> {
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut values: Vec<f64> = logits.iter().map(|logit| libm::exp(logit - greatest)).collect();
    let sum: f64 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
    values
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::train::random::{Stream, generator};

    fn loss(model: Model, params: &[f32], examples: &Examples, batch: &[usize]) -> f64 {
        let of = |&example: &usize| {
            let logits = model.logits(params, examples.pixels(example));
            let sum: f64 = logits.iter().map(|&logit| libm::exp(logit)).sum();
            libm::log(sum) - logits[usize::from(examples.label(example))]
        };
        batch.iter().map(of).sum::<f64>() / batch.len() as f64
    }

    /// Central differences err by `h²/6` of the third derivative, which is at most 16³ · 0.2 here: below
    /// 6e-7 with `h = 2^-14`. Rounding the gradient to `f32` adds at most `16 · 2^-24`, below 1e-6.
    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let examples = Examples::digits().unwrap();
        let batch = [0, 5, 17, 1796];
        let h = 1.0 / 16384.0;
        for model in [Model::Softmax, Model::Perceptron { hidden: 7 }] {
            let mut random = generator(3, Stream::Model);
            // Multiples of 2^-10, so that a step of h to either side is exact.
            let random = std::iter::repeat_with(|| random.random_range(-512..512) as f32 / 1024.0);
            let params: Vec<f32> = random.take(model.params()).collect();
            let mut gradient = vec![0.0; params.len()];
            model.gradient(&params, &examples, &batch, &mut gradient);
            for (i, &got) in gradient.iter().enumerate() {
                let loss_at = |shift: f32| {
                    let mut params = params.clone();
                    params[i] += shift;
                    loss(model, &params, &examples, &batch)
                };
                let slope = (loss_at(h) - loss_at(-h)) / f64::from(2.0 * h);
                assert!((f64::from(got) - slope).abs() < 1.6e-6, "{model} {i}: got {got}, slope {slope}");
            }
        }
    }

    #[test]
    fn a_logit_that_is_nan_never_wins() {
        let pixels = [0.0; PIXELS];
        let mut params = vec![0.0; Model::Softmax.params()];
        assert_eq!(Model::Softmax.classify(&params, &pixels), Some(0));
        let biases = params.len() - usize::from(CLASSES);
        params[biases] = f32::NAN;
        params[biases + 4] = f32::INFINITY;
        assert_eq!(Model::Softmax.classify(&params, &pixels), Some(4));
        params.fill(f32::NAN);
        assert_eq!(Model::Softmax.classify(&params, &pixels), None);
        assert_eq!(Model::Softmax.accuracy(&params, &Examples::digits().unwrap()), 0.0);
    }

    #[test]
    fn models_have_the_parameters_they_say() {
        for model in [Model::Softmax, Model::Perceptron { hidden: 32 }] {
            assert_eq!(model.initial(&mut generator(0, Stream::Model)).len(), model.params());
            assert_eq!(model.name().parse(), Ok(model));
        }
        assert_eq!(Model::Softmax.params(), 650);
        assert_eq!(Model::Perceptron { hidden: 32 }.params(), 2410);
    }
}
