//! The sources of a shader module: which files of `shaders/` a kernel's file needs beside it, for elements of any storage.

use super::storage::{Fours, Storage};
use crate::half::Half;

/// A file under `shaders/` with kernels in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shader {
    Norms,
    NormsAtOnce,
    Fused,
    Exact,
    Threshold,
    Clip,
    MeanWeights,
    Mean,
    MeanExact,
}

/// The variants of the shaders that a device takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    pub fours: Fours,
    pub subgroups: bool,
    /// Sums in f64, or in pairs of f32.
    pub doubles: bool,
    /// Sums widen f16 by the device's own conversion.
    pub unpacks: bool,
    pub storage: Storage,
}

impl Storage {
    /// Sources of `load4`, `load1`, `magnitudes4` and `groups`, of `store4` and `scale_whole4`, and of `scaled` and `cut`.
    fn sources(self, fours: Fours, unpacks: bool) -> [String; 3] {
        let by_count = include_str!("../../../shaders/groups.wgsl");
        match self {
            Self::Single => {
                let (data, store) = match fours {
                    Fours::None => (
                        [by_count, include_str!("../../../shaders/data_scalar.wgsl")].join("\n"),
                        include_str!("../../../shaders/store_scalar.wgsl"),
                    ),
                    Fours::Loose => (
                        include_str!("../../../shaders/data_loose.wgsl").into(),
                        include_str!("../../../shaders/store_loose.wgsl"),
                    ),
                    Fours::Aligned => (
                        [by_count, include_str!("../../../shaders/data_vec4.wgsl")].join("\n"),
                        include_str!("../../../shaders/store_vec4.wgsl"),
                    ),
                };
                let data = [&data, include_str!("../../../shaders/data_single.wgsl")].join("\n");
                let store = [store, include_str!("../../../shaders/scale_single.wgsl")].join("\n");
                [data, store, include_str!("../../../shaders/product.wgsl").into()]
            }
            Self::Half(half) => {
                let magnitudes = match (half, unpacks) {
                    (Half::F16, false) => include_str!("../../../shaders/magnitudes_f16.wgsl"),
                    (Half::F16, true) => include_str!("../../../shaders/magnitudes_f16_unpacked.wgsl"),
                    (Half::Bf16, _) => "",
                };
                let (format, scale) = match half {
                    Half::F16 => (
                        include_str!("../../../shaders/data_f16.wgsl"),
                        include_str!("../../../shaders/scale_f16.wgsl"),
                    ),
                    Half::Bf16 => (
                        include_str!("../../../shaders/data_bf16.wgsl"),
                        include_str!("../../../shaders/scale_bf16.wgsl"),
                    ),
                };
                let scale = [include_str!("../../../shaders/scale_half.wgsl"), scale].join("\n");
                let (words, store) = match fours {
                    Fours::Aligned => (
                        include_str!("../../../shaders/half_wide.wgsl"),
                        include_str!("../../../shaders/store_half_wide.wgsl"),
                    ),
                    Fours::None | Fours::Loose => (
                        include_str!("../../../shaders/half_words.wgsl"),
                        include_str!("../../../shaders/store_half_words.wgsl"),
                    ),
                };
                [
                    [by_count, format, magnitudes, words, include_str!("../../../shaders/data_half.wgsl")]
                        .join("\n"),
                    [store, include_str!("../../../shaders/store_half.wgsl"), &scale].join("\n"),
                    include_str!("../../../shaders/product_half.wgsl").into(),
                ]
            }
        }
    }
}

/// The whole source of the module of a shader.
pub(crate) fn source(shader: Shader, variant: Variant) -> String {
    let [data, store, product] = &variant.storage.sources(variant.fours, variant.unpacks);
    let reduce = if variant.subgroups {
        include_str!("../../../shaders/reduce_subgroup.wgsl")
    } else {
        include_str!("../../../shaders/reduce_shared.wgsl")
    };
    let center = include_str!("../../../shaders/center.wgsl");
    let around = include_str!("../../../shaders/around.wgsl");
    let pairs = include_str!("../../../shaders/pairs.wgsl");
    let sum = if variant.doubles {
        include_str!("../../../shaders/sum_doubles.wgsl")
    } else {
        include_str!("../../../shaders/sum_pairs.wgsl")
    };
    let settle = include_str!("../../../shaders/settle.wgsl");
    let list = include_str!("../../../shaders/list.wgsl");
    let partials = include_str!("../../../shaders/partials.wgsl");
    let exact_sum = include_str!("../../../shaders/exact_sum.wgsl");
    let exact_root = include_str!("../../../shaders/exact_root.wgsl");
    let norms = include_str!("../../../shaders/norms.wgsl");
    let at_once = include_str!("../../../shaders/norms_at_once.wgsl");
    let exact = include_str!("../../../shaders/exact.wgsl");
    let decide = include_str!("../../../shaders/decide.wgsl");
    let apply = include_str!("../../../shaders/apply.wgsl");
    let fused = include_str!("../../../shaders/fused.wgsl");
    let strip = include_str!("../../../shaders/strip.wgsl");
    let signed_pairs = include_str!("../../../shaders/signed_pairs.wgsl");
    let terms = if variant.doubles {
        include_str!("../../../shaders/terms_doubles.wgsl")
    } else {
        include_str!("../../../shaders/terms_pairs.wgsl")
    };
    let mean = include_str!("../../../shaders/mean.wgsl");
    let mean_exact = include_str!("../../../shaders/mean_exact.wgsl");
    let parts: &[&str] = match shader {
        Shader::Norms => &[data, center, pairs, sum, settle, list, decide, partials, norms, reduce],
        Shader::NormsAtOnce => {
            &[data, center, pairs, sum, settle, decide, partials, exact_sum, exact_root, at_once]
        }
        Shader::Fused => {
            &[data, store, center, pairs, sum, settle, list, decide, product, around, apply, fused, reduce]
        }
        Shader::Exact => &[data, center, decide, exact_sum, exact_root, exact],
        Shader::Threshold => &[decide, include_str!("../../../shaders/threshold.wgsl")],
        Shader::Clip => {
            &[data, store, center, product, around, apply, include_str!("../../../shaders/clip.wgsl")]
        }
        Shader::MeanWeights => &[strip, include_str!("../../../shaders/mean_weights.wgsl")],
        Shader::Mean => &[data, center, product, around, pairs, signed_pairs, strip, terms, mean],
        Shader::MeanExact => &[data, center, product, around, strip, mean_exact],
    };
    [&[include_str!("../../../shaders/common.wgsl")], parts].concat().join("\n")
}
