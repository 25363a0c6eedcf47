//! Reading a base model's tensors, from a GGUF file or a Hugging Face folder, into what the decoder
//! multiplies with.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use super::config::ModelConfig;
use super::gguf::{Gguf, GgufError, unpermuted_rows};
use super::mapped::MappedFile;
use super::tensors::{Norm, Projection, TensorName};
use crate::kernels::{DenseType, Matrix, Pages, QuantType, WeightType};

/// In which form weights are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightForm {
    /// As they are stored: a quantised file stays as small as it is.
    #[default]
    Stored,
    /// Everything as 32-bit floats: the yardstick, at 4 bytes a weight.
    F32,
}

/// A weight matrix of shape (outputs, inputs).
#[derive(Debug, Clone)]
pub enum Weight {
    /// Kept in the file's quantised type.
    Quantised(Arc<QTensor>),
    /// 32-bit floats.
    Dense(Tensor),
}

/// Why weights could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// From the GGUF reader.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A safetensors file is unreadable or unsound.
    #[error("cannot read {}: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A tensor is absent.
    #[error("the model has no tensor `{0}`; the file is incomplete or of another architecture")]
    Missing(String),
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has the shape {found:?}, the model's configuration asks for {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What was expected.
        expected: Vec<usize>,
    },
    /// The file holds tensors that the decoder does not know, so it would compute something else.
    #[error("the model has tensors that shishin does not use, so its answers would be wrong: {0}")]
    Unused(String),
    /// A tensor is of a type that has no packed form.
    #[error(
        "tensor `{name}` is of the type {found}, which shishin cannot run; take a file in Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, F16, BF16 or F32, or set model.weights to f32"
    )]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// From candle.
    #[error("tensor arithmetic while loading: {0}")]
    Candle(#[from] candle_core::Error),
}

/// Where tensors come from.
pub(super) enum WeightSource<'a> {
    Gguf(&'a Gguf),
    Safetensors(Vec<(PathBuf, SafeTensors<'a>)>),
}

/// Reads tensors by name, checks their shapes, and remembers which were asked for.
pub(super) struct WeightReader<'a> {
    source: WeightSource<'a>,
    config: &'a ModelConfig,
    form: WeightForm,
    device: &'a Device,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> WeightReader<'a> {
    pub(super) fn new(
        source: WeightSource<'a>,
        config: &'a ModelConfig,
        form: WeightForm,
        device: &'a Device,
    ) -> Self {
        Self { source, config, form, device, used: RefCell::default() }
    }

    fn name(&self, tensor: TensorName) -> String {
        match &self.source {
            WeightSource::Gguf(_) => tensor.gguf(),
            WeightSource::Safetensors(_) => tensor.hf(self.config.architecture),
        }
    }

    /// Whether the file holds that tensor.
    pub(super) fn has(&self, tensor: TensorName) -> bool {
        let name = self.name(tensor);
        match &self.source {
            WeightSource::Gguf(gguf) => gguf.header().tensor(&name).is_some(),
            WeightSource::Safetensors(files) => files.iter().any(|(_, st)| st.tensor(&name).is_ok()),
        }
    }

    /// A matrix in the chosen form.
    pub(super) fn matrix(&self, tensor: TensorName, shape: (usize, usize)) -> Result<Weight, WeightError> {
        let name = self.name(tensor);
        let weight = match &self.source {
            WeightSource::Gguf(gguf) => {
                let q = self.quantised(gguf, &name, tensor)?;
                let keep = self.form == WeightForm::Stored && !matches!(q.dtype(), GgmlDType::F32);
                if keep { Weight::Quantised(Arc::new(q)) } else { Weight::Dense(q.dequantize(self.device)?) }
            }
            WeightSource::Safetensors(files) => Weight::Dense(self.safetensor(files, &name)?),
        };
        let found = match &weight {
            Weight::Quantised(q) => q.shape().dims().to_vec(),
            Weight::Dense(t) => t.dims().to_vec(),
        };
        self.check(&name, found, vec![shape.0, shape.1])?;
        Ok(weight)
    }

    /// A matrix packed for the kernels, in the chosen form.
    pub(super) fn packed(
        &self,
        tensor: TensorName,
        shape: (usize, usize),
        pages: &mut Pages,
    ) -> Result<Matrix, WeightError> {
        let name = self.name(tensor);
        let misshapen =
            || WeightError::Shape { name: name.clone(), found: vec![], expected: vec![shape.0, shape.1] };
        match &self.source {
            WeightSource::Gguf(gguf) if self.form == WeightForm::Stored => {
                let (info, bytes) = gguf.stored(&name)?;
                self.used.borrow_mut().insert(name.clone());
                self.check(&name, info.dims.clone(), vec![shape.0, shape.1])?;
                let kind = packed_type(info.dtype).ok_or_else(|| WeightError::Type {
                    name: name.clone(),
                    found: super::gguf::type_name(info.dtype),
                })?;
                let row_bytes =
                    kind.row_bytes(shape.1).filter(|b| b * shape.0 == bytes.len()).ok_or_else(misshapen)?;
                let row = |r: usize| &bytes[r * row_bytes..(r + 1) * row_bytes];
                let packed = match self.interleaved_heads(tensor) {
                    // See `Gguf::quantised_unpermuted`: rows are whole blocks, so this is exact.
                    Some(heads) => {
                        let order: Vec<usize> =
                            unpermuted_rows(shape.0, heads).ok_or_else(misshapen)?.collect();
                        Matrix::pack(kind, shape, |r| row(order[r]), pages)
                    }
                    None => Matrix::pack(kind, shape, row, pages),
                };
                packed.ok_or_else(misshapen)
            }
            WeightSource::Safetensors(files) if self.form == WeightForm::Stored => {
                self.used.borrow_mut().insert(name.clone());
                let view = files
                    .iter()
                    .find_map(|(_, st)| st.tensor(&name).ok())
                    .ok_or_else(|| WeightError::Missing(name.clone()))?;
                self.check(&name, view.shape().to_vec(), vec![shape.0, shape.1])?;
                let kind = match view.dtype() {
                    safetensors::Dtype::F32 => DenseType::F32,
                    safetensors::Dtype::F16 => DenseType::F16,
                    safetensors::Dtype::BF16 => DenseType::Bf16,
                    other => return Err(WeightError::Type { name, found: format!("{other:?}") }),
                };
                let (row_bytes, bytes) = (shape.1 * kind.bytes(), view.data());
                let row = |r: usize| &bytes[r * row_bytes..(r + 1) * row_bytes];
                Matrix::pack(WeightType::Dense(kind), shape, row, pages).ok_or_else(misshapen)
            }
            _ => match self.matrix(tensor, shape)? {
                Weight::Dense(t) => {
                    let numbers = t.flatten_all()?.to_vec1::<f32>()?;
                    Matrix::pack_f32(shape, &numbers, pages).ok_or_else(misshapen)
                }
                Weight::Quantised(_) => Err(misshapen()),
            },
        }
    }

    /// About how many bytes all packed matrices take: a bound on what the file holds.
    pub(super) fn packed_bytes(&self) -> usize {
        let stored: usize = match &self.source {
            WeightSource::Gguf(gguf) => gguf.header().tensors.iter().map(|t| t.range.len()).sum(),
            WeightSource::Safetensors(files) => {
                files.iter().flat_map(|(_, st)| st.tensors()).map(|(_, view)| view.data().len()).sum()
            }
        };
        if self.form == WeightForm::Stored { stored } else { 0 }
    }

    /// A vector as 32-bit floats.
    pub(super) fn vector(&self, tensor: TensorName, length: usize) -> Result<Tensor, WeightError> {
        let name = self.name(tensor);
        let vector = match &self.source {
            WeightSource::Gguf(gguf) => self.quantised(gguf, &name, tensor)?.dequantize(self.device)?,
            WeightSource::Safetensors(files) => self.safetensor(files, &name)?,
        };
        self.check(&name, vector.dims().to_vec(), vec![length])?;
        Ok(vector)
    }

    /// A norm's weight, with the configuration's offset added.
    pub(super) fn norm(&self, tensor: TensorName) -> Result<Tensor, WeightError> {
        let length = match tensor {
            TensorName::Norm(_, Norm::Query | Norm::Key) => self.config.head_dim,
            _ => self.config.hidden,
        };
        let weight = self.vector(tensor, length)?;
        Ok(if self.config.norm_offset == 0.0 { weight } else { (weight + self.config.norm_offset)? })
    }

    /// Refuses a file with tensors that nothing asked for.
    pub(super) fn finish(self) -> Result<(), WeightError> {
        let used = self.used.into_inner();
        let names: Vec<String> = match &self.source {
            WeightSource::Gguf(gguf) => gguf.header().tensors.iter().map(|t| t.name.clone()).collect(),
            WeightSource::Safetensors(files) => {
                files.iter().flat_map(|(_, st)| st.names().into_iter().map(str::to_owned)).collect()
            }
        };
        // Frequency tables are read with the configuration or recomputed from it.
        let derived = |name: &str| name == "rope_freqs.weight" || name.ends_with("rotary_emb.inv_freq");
        let tied_head = |name: &str| name == "lm_head.weight";
        let unused: Vec<_> =
            names.into_iter().filter(|n| !used.contains(n) && !derived(n) && !tied_head(n)).collect();
        if unused.is_empty() { Ok(()) } else { Err(WeightError::Unused(shortened(&unused))) }
    }

    fn quantised(&self, gguf: &Gguf, name: &str, tensor: TensorName) -> Result<QTensor, WeightError> {
        self.used.borrow_mut().insert(name.to_owned());
        Ok(match self.interleaved_heads(tensor) {
            Some(heads) => gguf.quantised_unpermuted(name, heads, self.device)?,
            None => gguf.quantised(name, self.device)?,
        })
    }

    /// The heads whose rows the file interleaves.
    fn interleaved_heads(&self, tensor: TensorName) -> Option<usize> {
        match tensor {
            TensorName::Weight(_, p) | TensorName::Bias(_, p) => p.interleaved_heads(self.config),
            _ => None,
        }
    }

    fn safetensor(&self, files: &[(PathBuf, SafeTensors<'_>)], name: &str) -> Result<Tensor, WeightError> {
        self.used.borrow_mut().insert(name.to_owned());
        let view = files
            .iter()
            .find_map(|(_, st)| st.tensor(name).ok())
            .ok_or_else(|| WeightError::Missing(name.to_owned()))?;
        tensor_of_view(&view, self.device)
    }

    fn check(&self, name: &str, found: Vec<usize>, expected: Vec<usize>) -> Result<(), WeightError> {
        if found == expected {
            return Ok(());
        }
        Err(WeightError::Shape { name: name.to_owned(), found, expected })
    }
}

/// The packed form of a GGUF type.
fn packed_type(dtype: GgmlDType) -> Option<WeightType> {
    Some(match dtype {
        GgmlDType::Q4_0 => WeightType::Quantised(QuantType::Q4_0),
        GgmlDType::Q4_1 => WeightType::Quantised(QuantType::Q4_1),
        GgmlDType::Q5_0 => WeightType::Quantised(QuantType::Q5_0),
        GgmlDType::Q5_1 => WeightType::Quantised(QuantType::Q5_1),
        GgmlDType::Q8_0 => WeightType::Quantised(QuantType::Q8_0),
        GgmlDType::Q4K => WeightType::Quantised(QuantType::Q4K),
        GgmlDType::Q5K => WeightType::Quantised(QuantType::Q5K),
        GgmlDType::Q6K => WeightType::Quantised(QuantType::Q6K),
        GgmlDType::F32 => WeightType::Dense(DenseType::F32),
        GgmlDType::F16 => WeightType::Dense(DenseType::F16),
        GgmlDType::BF16 => WeightType::Dense(DenseType::Bf16),
        _ => return None,
    })
}

/// A safetensors view as a tensor of 32-bit floats.
pub(super) fn tensor_of_view(
    view: &safetensors::tensor::TensorView<'_>,
    device: &Device,
) -> Result<Tensor, WeightError> {
    let dtype = DType::try_from(view.dtype())?;
    let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), device)?;
    Ok(tensor.to_dtype(DType::F32)?)
}

/// Parses mapped safetensors files.
pub(super) fn parse_safetensors(
    files: &[MappedFile],
) -> Result<Vec<(PathBuf, SafeTensors<'_>)>, WeightError> {
    files
        .iter()
        .map(|file| {
            SafeTensors::deserialize(file)
                .map(|st| (file.path().to_owned(), st))
                .map_err(|e| WeightError::Safetensors { path: file.path().to_owned(), reason: e.to_string() })
        })
        .collect()
}

/// Maps every `*.safetensors` file of a folder, in the order of their names.
pub(super) fn map_safetensors(folder: &Path) -> Result<Vec<MappedFile>, WeightError> {
    let fail = |path: &Path, reason: String| WeightError::Safetensors { path: path.to_owned(), reason };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|e| fail(folder, e.to_string()))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    if paths.is_empty() {
        return Err(fail(folder, "the folder holds no *.safetensors file".into()));
    }
    paths.iter().map(|p| MappedFile::open(p).map_err(|e| fail(p, e.to_string()))).collect()
}

/// A list for a message: the first few names and how many more there are.
pub(super) fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut list = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        list.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    list
}

/// The expected shape of a projection's weight, for readers of [`Weight`]s.
pub(super) fn projection_weight(
    reader: &WeightReader<'_>,
    layer: usize,
    projection: Projection,
) -> Result<Weight, WeightError> {
    reader.matrix(TensorName::Weight(layer, projection), projection.shape(reader.config))
}
