//! The options that say how a batch is clipped, for the commands that clip one.

use std::path::PathBuf;

use byzclip::{Backend, Clipping, Layout, NonFinite, Scope, State, half};

use super::batch_file::BatchFile;
use super::batch_output;
use super::center::Center;
use super::elements::Dtype;
use super::failure::Failure;
use super::options::WindowArgs;
use super::state_file::SavedState;
use super::stream::Stream;
use super::threshold::ThresholdArgs;
use super::{options, scope};

#[derive(Debug, clap::Args)]
pub(super) struct ClippingArgs {
    #[command(flatten)]
    pub threshold: ThresholdArgs,
    /// Clip around the vector in FILE, for example the server's model, instead of around zero: an .npy or a
    /// .safetensors of one row.
    #[arg(long, value_name = "FILE", conflicts_with = "per_coordinate")]
    center: Option<PathBuf>,
    /// Which clients may be clipped; all others are neither read nor changed.
    #[arg(long, value_name = "all|rows:0,3,5-8", default_value = "all", value_parser = scope::Rows::parse)]
    scope: scope::Rows,
    /// What is done with updates that hold NaN or Inf: zeroed (they become the centre, if there is one), refused,
    /// or kept as they are.
    #[arg(long, value_name = "zero|error|keep", default_value = "zero", value_parser = options::parse_non_finite)]
    non_finite: NonFinite,
}

/// A batch, and what it is clipped with.
pub(super) struct Opened<'a> {
    pub batch: BatchFile,
    /// Without its centre and scope, which are as long as the batch.
    pub clipping: Clipping,
    scope: &'a scope::Rows,
    center: Option<Center>,
    window: usize,
}

impl Opened<'_> {
    pub(super) fn stream<'s>(&'s self, backend: &'s dyn Backend) -> Stream<'s> {
        let Self { batch, clipping, scope, center, window } = self;
        Stream { batch, backend, clipping, scope, center: center.as_ref(), window: *window }
    }
}

impl ClippingArgs {
    /// Opens and checks all this before an element is read, and the threshold's state with it.
    pub(super) fn open(
        &self,
        clipping: Clipping,
        inputs: &[PathBuf],
        window: &WindowArgs,
    ) -> Result<(Opened<'_>, SavedState<'_>), Failure> {
        let batch = BatchFile::open(inputs)?;
        let window = window.elements(&batch);
        let center = self.center(&batch, window)?;
        let state = self.threshold.state.as_deref();
        let saved = SavedState::load(state, &clipping, center.is_some(), &batch.layout)?;
        self.check(&clipping, &batch.layout, &saved.state)?;
        Ok((Opened { batch, clipping, scope: &self.scope, center, window }, saved))
    }

    /// The clipping asked for, but for the centre and the scope.
    pub(super) fn clipping(&self) -> Result<Clipping, Failure> {
        Ok(Clipping {
            threshold: self.threshold.threshold()?,
            scope: Scope::All,
            non_finite: self.non_finite,
            granularity: self.threshold.granularity(),
            center: None,
        })
    }

    /// The centre of a batch that is read so many elements at a time, where there is one.
    fn center(&self, batch: &BatchFile, window: usize) -> Result<Option<Center>, Failure> {
        let Some(path) = &self.center else { return Ok(None) };
        if let Dtype::Half(_) = batch.dtype {
            return Err(half::no_center().into());
        }
        Center::open(path, batch, window).map(Some)
    }

    /// Checks, before anything is read, that the settings fit a batch and the state that its threshold goes on with.
    fn check(&self, clipping: &Clipping, layout: &Layout, state: &State) -> Result<(), Failure> {
        clipping.check(layout, state)?;
        self.scope.check(layout.clients())
    }

    /// Checks, before anything is read, that what is written lies apart from what is read.
    pub(super) fn check_files(&self, inputs: &[PathBuf], targets: &[PathBuf]) -> Result<(), Failure> {
        let inputs: Vec<&PathBuf> = inputs.iter().chain(&self.center).collect();
        for target in targets {
            batch_output::check_apart("output", target, "input", &inputs)?;
        }
        if let Some(state) = &self.threshold.state {
            batch_output::check_apart("--state", state, "input", &inputs)?;
            batch_output::check_apart("--state", state, "output", &targets.iter().collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
