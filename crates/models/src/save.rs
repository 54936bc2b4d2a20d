//! A trained dense base as a Hugging Face folder.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Map, Value};
use tailor_quant::Float;
use tch::{Kind, Tensor};

use crate::{Base, Error, Result};

impl Base {
    /// Writes `config.json` and `model.safetensors` with every weight in `dtype` (F32 or BF16).
    ///
    /// # Errors
    /// The base has weights in 4 bits, a type that is not written, a full disk.
    pub fn save_folder(&self, folder: &Path, dtype: Float) -> Result<()> {
        if let Some(linear) = self.linears().iter().find(|linear| linear.quantized) {
            return Err(Error::Request(format!("{} is in 4 bits; only a dense base can be saved", linear.path)));
        }
        let (kind, stored) = match dtype {
            Float::F32 => (Kind::Float, Dtype::F32),
            Float::Bf16 => (Kind::BFloat16, Dtype::BF16),
            Float::F16 => (Kind::Half, Dtype::F16),
        };
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let bytes = |tensor: &Tensor| -> Result<Vec<u8>> {
            let tensor = tensor.detach().to_device(tch::Device::Cpu).to_kind(kind).contiguous();
            let mut bytes = vec![0u8; tensor.numel() * kind.elt_size_in_bytes()];
            tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
            Ok(bytes)
        };
        let mut data = Vec::new();
        for parameter in &self.parameters {
            let shape: Vec<usize> = parameter.tensor.size().iter().map(|&side| side as usize).collect();
            data.push((parameter.name.as_str(), shape, bytes(&parameter.tensor)?));
        }
        let views = data
            .iter()
            .map(|(name, shape, bytes)| {
                let view = TensorView::new(stored, shape.clone(), bytes);
                view.map(|view| (*name, view)).map_err(|error| Error::tensor(name, error.to_string()))
            })
            .collect::<Result<Vec<_>>>()?;
        let path = folder.join("model.safetensors");
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize_to_file(views, Some(metadata), &path)
            .map_err(|error| Error::Io { path: path.display().to_string(), source: std::io::Error::other(error) })?;

        let mut config: Map<String, Value> =
            serde_json::from_slice(&self.config_text).map_err(|error| Error::config("(file)", error.to_string()))?;
        config.insert("torch_dtype".into(), dtype.as_str().into());
        let text = serde_json::to_string_pretty(&config).map_err(|error| Error::config("(file)", error.to_string()))?;
        let path = folder.join("config.json");
        fs::write(&path, text + "\n").map_err(Error::io(&path))
    }
}
