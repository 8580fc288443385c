//! The file that remembers a threshold's state between calls.

use std::fmt;
use std::io::{BufReader, Read};
use std::path::Path;

use byzclip::threshold::State;
use byzclip::{Clipping, Granularity, Layout, Threshold};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::failure::{Failure, excerpt};
use super::output::{Complete, Pending};
use super::threshold::name;
use super::{display, input_file};

/// A state file: what it belongs to, and the state.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    byzclip_state: u32,
    threshold: String,
    /// What the threshold looked at.
    #[serde(default)]
    norms: String,
    clients: usize,
    spans: usize,
    #[serde(deserialize_with = "some_words")]
    words: Vec<u32>,
}

/// The version of the file's format.
const VERSION: u32 = 2;

/// Norms that a history may remember: 64 MiB of them.
const MOST_REMEMBERED: usize = 1 << 24;

/// Words of the longest state: norms, and for each group of at least one the number of its rounds.
const MOST_WORDS: usize = 2 * MOST_REMEMBERED;

/// Bytes of the longest state: eleven for a word in decimal with its comma, and what it belongs to.
const LONGEST: u64 = 11 * MOST_WORDS as u64 + (64 << 10);

/// Fails where a history would be longer than any that is read again.
fn check_history(threshold: &Threshold, norms: usize) -> Result<(), Failure> {
    match *threshold {
        Threshold::History { window, .. } if (window as usize).saturating_mul(norms) > MOST_REMEMBERED => {
            Err(Failure::Usage(format!(
                "got a history of {}, each of {}; expected at most 16,777,216 norms, those of all layers; take fewer rounds",
                display::count(window as usize, "round"),
                display::count(norms, "norm"),
            )))
        }
        _ => Ok(()),
    }
}

/// Reads words, but no more than any state has.
fn some_words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Vec<u32>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "the words of a state")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<Vec<u32>, A::Error> {
            let mut all = Vec::new();
            while let Some(word) = words.next_element()? {
                if all.len() == MOST_WORDS {
                    return Err(A::Error::custom("too many words"));
                }
                all.push(word);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_seq(Words)
}

/// What a threshold looks at: norms of another kind say nothing about these.
fn kind_of_norms(granularity: Granularity, is_centered: bool) -> &'static str {
    match (granularity, is_centered) {
        (Granularity::Row, false) => "norms of updates",
        (Granularity::Row, true) => "norms of differences from a centre",
        (Granularity::Segment, false) => "norms of layers",
        (Granularity::Segment, true) => "norms of layers' differences from a centre",
        (Granularity::Coordinate, _) => "largest magnitudes",
    }
}

/// A threshold's state, and the file it is kept in.
pub(super) struct SavedState<'a> {
    pub state: State,
    path: Option<&'a Path>,
    described: StateFile,
}

impl<'a> SavedState<'a> {
    /// The state in the file, or a new one where there is no file or none was named.
    pub(super) fn load(
        path: Option<&'a Path>,
        clipping: &Clipping,
        is_centered: bool,
        layout: &Layout,
    ) -> Result<Self, Failure> {
        let mut saved = Self {
            state: State::default(),
            path,
            described: StateFile {
                byzclip_state: VERSION,
                threshold: name(&clipping.threshold),
                norms: kind_of_norms(clipping.granularity, is_centered).into(),
                clients: layout.clients(),
                spans: layout.span_count(clipping.granularity),
                words: Vec::new(),
            },
        };
        // First, because it has the narrower limit where there is one layer.
        clipping.threshold.check(layout, clipping.granularity)?;
        check_history(&clipping.threshold, saved.described.spans)?;
        let Some(path) = path else { return Ok(saved) };
        let (file, reader) = match input_file::open(path, "a state that byzclip wrote") {
            Ok(opened) => opened,
            Err(_) if matches!(path.try_exists(), Ok(false)) => return Ok(saved),
            Err(failure) => return Err(failure),
        };
        if file.length > LONGEST {
            let got = format!("{} bytes", file.length);
            let expected = format!("a state that byzclip wrote, of at most {LONGEST}");
            return Err(Failure::content(path, &got, &expected, "name another file"));
        }
        let file: StateFile = serde_json::from_reader(BufReader::new(reader.take(LONGEST))).map_err(|e| {
            if e.is_io() {
                return Failure::unreadable(path, &e.into());
            }
            Failure::content(
                path,
                &format!("\"{}\"", excerpt(&e.to_string())),
                "a state that byzclip wrote",
                "name another file, or remove this one",
            )
        })?;
        saved.described.check(&file, path)?;
        saved.state = State::from_words(file.words);
        Ok(saved)
    }

    /// The state that the run left, written and ready to take its place, if a file was named.
    pub(super) fn complete(self) -> Result<Option<Complete>, Failure> {
        let Some(path) = self.path else { return Ok(None) };
        let mut pending = Pending::create(path)?;
        pending.write_json(&StateFile { words: self.state.into_words(), ..self.described })?;
        Ok(Some(pending.complete()?))
    }
}

impl StateFile {
    /// Fails where a file belongs to something else.
    fn check(&self, file: &Self, path: &Path) -> Result<(), Failure> {
        let other = |got: String, expected: String| {
            Err(Failure::content(
                path,
                &got,
                &expected,
                "name another file, or remove this one to begin anew",
            ))
        };
        if file.byzclip_state != VERSION {
            return other(format!("version {}", file.byzclip_state), format!("version {VERSION}"));
        }
        if file.threshold != self.threshold {
            return other(
                format!("the state of {}", excerpt(&file.threshold)),
                format!("that of {}", self.threshold),
            );
        }
        if file.norms != self.norms {
            return other(
                format!("a state from {}", excerpt(&file.norms)),
                format!("one from {}", self.norms),
            );
        }
        if file.words.is_empty() && self.spans > 0 {
            return other("a state without words".into(), "the words that byzclip wrote".into());
        }
        if (file.clients, file.spans) != (self.clients, self.spans) {
            return other(
                format!("the state of {} clients with {} bounds", file.clients, file.spans),
                format!("{} clients with {}", self.clients, self.spans),
            );
        }
        Ok(())
    }
}
