//! Small bases with random weights and a tokenizer whose tokens are characters: they answer nonsense, fast.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tailor_testkit::{LlamaShape, T5Shape};

/// Specials and the printable ASCII characters, rounded up.
const VOCABULARY: usize = 128;
const SPECIALS: [&str; 3] = ["<pad>", "</s>", "<unk>"];
const CHARACTERS: std::ops::RangeInclusive<char> = ' '..='~';
const CHAT_TEMPLATE: &str = "{% if tools %}[t]{{ tools | tojson }}{% endif %}{% for message in messages %}[{{ message['role'][0] }}]{{ message['content'] }}\
    {% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}[a]{% endif %}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    T5,
    Llama,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::T5, Self::Llama];

    /// The name under which its base is registered.
    pub fn base(self) -> &'static str {
        match self {
            Self::T5 => "little-t5",
            Self::Llama => "little-llama",
        }
    }

    /// Writes a Hugging Face folder into `parent`.
    pub fn write(self, parent: &Path) -> PathBuf {
        match self {
            Self::T5 => {
                let shape = T5Shape { vocab: VOCABULARY, ..T5Shape::default() };
                self.write_with(parent, |folder| shape.write(folder, 5))
            }
            Self::Llama => {
                let shape = LlamaShape { vocab: VOCABULARY, context: 512, ..LlamaShape::default() };
                Self::write_llama(parent, &shape)
            }
        }
    }

    /// The decoder in any shape.
    pub fn write_llama(parent: &Path, shape: &LlamaShape) -> PathBuf {
        Self::Llama.write_with(parent, |folder| shape.write(folder, 7))
    }

    fn write_with(self, parent: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> PathBuf {
        let folder = parent.join(self.base());
        std::fs::create_dir_all(&folder).expect("make a folder");
        write(&folder).expect("write a base");
        std::fs::write(folder.join("tokenizer.json"), tokenizer()).expect("write a tokenizer");
        std::fs::write(folder.join("tokenizer_config.json"), self.settings()).expect("write its settings");
        folder
    }

    fn settings(self) -> String {
        let mut settings = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
        });
        if self == Self::Llama {
            settings["chat_template"] = CHAT_TEMPLATE.into();
        }
        settings.to_string()
    }
}

/// Biases that leave a base nothing but characters to say: no answer ends early, and each of its tokens is text.
pub fn only_characters() -> impl Iterator<Item = (u32, f32)> {
    let spoken = SPECIALS.len()..SPECIALS.len() + CHARACTERS.count();
    (0..VOCABULARY).filter(move |id| !spoken.contains(id)).map(|id| (id as u32, -1000.0))
}

fn tokenizer() -> String {
    let mut added = String::new();
    let mut vocabulary = String::new();
    for (id, text) in SPECIALS.iter().enumerate() {
        let comma = if id > 0 { "," } else { "" };
        write!(
            added,
            r#"{comma}{{"id":{id},"content":"{text}","single_word":false,"lstrip":false,"rstrip":false,
"normalized":false,"special":true}}"#
        )
        .expect("text");
        write!(vocabulary, r#"{comma}"{text}":{id}"#).expect("text");
    }
    for (id, character) in (SPECIALS.len()..).zip(CHARACTERS) {
        write!(vocabulary, ",{}:{id}", serde_json::json!(character.to_string())).expect("text");
    }
    format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{added}],"normalizer":null,
"pre_tokenizer":null,"post_processor":null,"decoder":{{"type":"Fuse"}},"model":{{"type":"BPE","dropout":null,
"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,
"byte_fallback":false,"ignore_merges":false,"vocab":{{{vocabulary}}},"merges":[]}}}}"#
    )
}
