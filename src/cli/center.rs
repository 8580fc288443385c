//! The centre of a batch in files: a vector in one, of which no more is in memory than of the batch's rows.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::batch_file::BatchFile;
use super::display;
use super::elements::Elements;
use super::failure::Failure;
use super::stream::Piece;

/// A centre, `[params]`: one row, in the format of its file's name, of finite elements.
pub(super) struct Center {
    file: BatchFile,
    /// All of it, where rows are read whole.
    held: Option<Arc<[f32]>>,
}

impl Center {
    /// Reads all of it, a window of so many elements at a time, and keeps it where a window holds a row of the batch.
    pub(super) fn open(path: &Path, batch: &BatchFile, window: usize) -> Result<Self, Failure> {
        let file = BatchFile::open(&[path.to_owned()])?;
        let wrong = |got: String, expected: String| {
            Err(Failure::content(path, &got, &expected, "pass one vector of the same model"))
        };
        let (count, params) = (file.layout.clients(), file.layout.params());
        if count != 1 || params != batch.layout.params() {
            return wrong(
                format!("{} of {}", display::count(count, "row"), display::count(params, "element")),
                format!("1 row of {}", batch.layout.params()),
            );
        }
        if !batch.layers.is_empty() && !file.layers.is_empty() && !batch.same_layers(&file) {
            return wrong("tensors of other names or sizes".into(), "those of the inputs".into());
        }
        let mut center = Self { file, held: None };
        let mut part: Arc<[f32]> = Arc::default();
        for start in (0..params).step_by(window) {
            part = center.read(start..params.min(start + window))?;
            if let Some(at) = part.iter().position(|value| !value.is_finite()) {
                return wrong(format!("{} in element {}", part[at], start + at), "finite elements".into());
            }
        }
        if params <= window {
            center.held = Some(part);
        }
        Ok(center)
    }

    /// These columns of it.
    pub(super) fn of(&self, columns: &Range<usize>) -> Result<Arc<[f32]>, Failure> {
        match &self.held {
            Some(all) if columns.len() == all.len() => Ok(all.clone()),
            Some(all) => Ok(all[columns.clone()].into()),
            None => self.read(columns.clone()),
        }
    }

    /// Fails where the file is not what it was when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        self.file.check_unchanged()
    }

    fn read(&self, columns: Range<usize>) -> Result<Arc<[f32]>, Failure> {
        let mut elements = Elements::new(self.file.dtype);
        self.file.read(&Piece { rows: 0..1, columns }, &mut elements)?;
        Ok(elements.values().into())
    }
}
