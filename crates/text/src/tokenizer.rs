//! A base's own tokenizer: `tokenizer.json`, `tokenizer_config.json` and, where there is one, `chat_template.jinja`.
//! A folder that has a SentencePiece model instead of `tokenizer.json` opens too ([`Converted`]).

mod added;
mod bounds;
mod folder;
mod sentencepiece;
mod settings;
mod spelling;
mod stream;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

pub use folder::{Converted, SENTENCEPIECE_FILES};
pub use stream::TextStream;

use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use folder::FolderFiles;
use settings::Settings;
use spelling::Spelling;

pub const TOKENIZER_FILE: &str = "tokenizer.json";
pub const SETTINGS_FILE: &str = "tokenizer_config.json";
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// The largest vocabularies in use (Gemma's) take 35 MB.
const MAX_TOKENIZER_BYTES: usize = 128 << 20;
/// Settings may hold each of some thousand reserved tokens.
const MAX_SETTINGS_BYTES: usize = 4 << 20;

/// The bytes of the files, wherever they come from.
#[derive(Debug, Clone, Copy)]
pub struct TokenizerFiles<'a> {
    pub tokenizer: &'a [u8],
    pub settings: Option<&'a [u8]>,
    pub chat_template: Option<&'a [u8]>,
}

/// Cheap to clone; safe to share between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    special: Special,
    spelling: Arc<Spelling>,
    chat: Option<Arc<ChatTemplate>>,
}

/// Ids of the tokens with a meaning of their own.
#[derive(Debug, Clone, Default)]
struct Special {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    /// What the tokenizer puts before and after every text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl Tokenizer {
    /// # Errors
    /// A file is missing, too large or wrong; names the file and the field.
    pub fn open(folder: &Path) -> Result<Self> {
        let files = FolderFiles::read(folder)?;
        Self::from_files(TokenizerFiles {
            tokenizer: &files.tokenizer,
            settings: files.settings.as_deref(),
            chat_template: files.chat_template.as_deref(),
        })
    }

    /// # Errors
    /// A file is too large or wrong; names the file and the field.
    pub fn from_files(files: TokenizerFiles<'_>) -> Result<Self> {
        within(TOKENIZER_FILE, files.tokenizer.len(), MAX_TOKENIZER_BYTES)?;
        let growth = bounds::check(files.tokenizer)?;
        let mut inner = guarded("not a tokenizer", || tokenizers::Tokenizer::from_bytes(files.tokenizer))?;
        // Rows are cut and padded here, where it is reported, never silently by the tokenizer.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| Error::tokenizer(TOKENIZER_FILE, "truncation", error.to_string()))?;

        let settings = match files.settings {
            Some(bytes) => {
                within(SETTINGS_FILE, bytes.len(), MAX_SETTINGS_BYTES)?;
                Settings::parse(bytes)?
            }
            None => Settings::default(),
        };
        // transformers would give it an id that the model lacks.
        for (field, token) in [("bos_token", &settings.bos), ("eos_token", &settings.eos)] {
            if let Some(token) = token
                && inner.token_to_id(token).is_none()
                && !settings.added.defines(token)
            {
                let problem = format!("{token:?} is not in the vocabulary of {TOKENIZER_FILE}");
                return Err(Error::tokenizer(SETTINGS_FILE, field, problem));
            }
        }
        bounds::check_added(SETTINGS_FILE, "added_tokens_decoder", settings.added.bytes(), growth)?;
        settings.added.add_to(&mut inner)?;
        let (template, tool_template) = match files.chat_template {
            Some(bytes) => {
                within(CHAT_TEMPLATE_FILE, bytes.len(), MAX_SETTINGS_BYTES)?;
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| Error::tokenizer(CHAT_TEMPLATE_FILE, "", "not UTF-8; save it as UTF-8"))?;
                (Some(text.to_owned()), None)
            }
            None => (settings.chat_template.clone(), settings.tool_template.clone()),
        };
        let chat = template.map(|source| {
            let chat = ChatTemplate::parse(&source, settings.special_texts())?;
            match tool_template {
                Some(source) => chat.with_tool_template(&source),
                None => Ok(chat),
            }
        });
        let chat = chat.transpose()?;
        let special = Special::find(&inner, &settings)?;
        let decoder = serde_json::to_value(inner.get_decoder())
            .map_err(|error| Error::tokenizer(TOKENIZER_FILE, "decoder", error.to_string()))?;
        let spelling = Arc::new(Spelling::of(&decoder));
        Ok(Self { inner: Arc::new(inner), special, spelling, chat: chat.map(Arc::new) })
    }

    /// The ids of the text alone, without what the tokenizer adds around every text.
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    /// As `encode`, with the begin and end tokens that the tokenizer adds around every text.
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text)?;
        Ok(self.special.prefix.iter().copied().chain(ids).chain(self.special.suffix.iter().copied()).collect())
    }

    /// The ids of the text alone, and for each whether it has a part in one of the spans of bytes: what counts in the loss
    /// where the spans are what the assistant said. All tokens of a span's last letter count; of a letter that is cut
    /// into several, `transformers` counts the first alone.
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode_with_spans(&self, text: &str, spans: &[Range<usize>]) -> Result<(Vec<u32>, Vec<bool>)> {
        let (ids, span_of) = self.encode_with_span_numbers(text, spans)?;
        Ok((ids, span_of.into_iter().map(|span| span.is_some()).collect()))
    }

    /// As `encode_with_spans`, and which of the spans it is: the first, where a token has a part in several. The spans are in
    /// order and do not overlap.
    pub(crate) fn encode_with_span_numbers(
        &self,
        text: &str,
        spans: &[Range<usize>],
    ) -> Result<(Vec<u32>, Vec<Option<usize>>)> {
        let encoding = self.encoding(text)?;
        let first_of = |&(start, end): &(usize, usize)| {
            let at = spans.partition_point(|span| span.end <= start);
            spans.get(at).filter(|span| span.start < end).map(|_| at)
        };
        let span_of = encoding.get_offsets().iter().map(first_of).collect();
        Ok((encoding.get_ids().to_vec(), span_of))
    }

    fn encoding(&self, text: &str) -> Result<tokenizers::Encoding> {
        guarded("cannot encode a text", || self.inner.encode(text, false))
    }

    /// Text of the ids. Special tokens are left out when `skip_special` is set.
    ///
    /// # Errors
    /// The tokenizer fails on the ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded("cannot decode ids", || self.inner.decode(ids, skip_special))
    }

    /// Decodes ids as they come, giving whole characters only.
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special)
    }

    /// `tokenizer.json` with what `tokenizer_config.json` adds to it.
    ///
    /// # Errors
    /// The tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String> {
        guarded("cannot be written", || self.inner.to_string(false))
    }

    /// The token as the vocabulary spells it, e.g. `▁Hello`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that the token stands for inside a text: ` Hello` for `▁Hello`, a single byte for `<0x0A>`, part of a
    /// character where a byte-level vocabulary cuts one. What was added to the vocabulary stands for its name, special or not.
    /// Where a decoder joins tokens by rules ([`Self::joined_by`]) it is what the token decodes to alone.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if let Some(added) = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id) {
            return Some(added.content.clone().into_bytes());
        }
        let token = self.inner.id_to_token(id)?;
        match &*self.spelling {
            Spelling::Joined(_) => self.decode(&[id], false).ok().map(String::into_bytes),
            spelling @ (Spelling::Bytes(_) | Spelling::Text { .. }) => Some(spelling.bytes(&token)),
        }
    }

    /// The decoder by whose rules tokens are joined, where what a token stands for depends on those beside it.
    pub fn joined_by(&self) -> Option<&str> {
        match &*self.spelling {
            Spelling::Joined(decoder) => Some(decoder),
            Spelling::Bytes(_) | Spelling::Text { .. } => None,
        }
    }

    /// Whether the token is no text: it was added to the vocabulary as a special one.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        added.is_some_and(|token| token.special)
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    pub fn unk(&self) -> Option<u32> {
        self.special.unk
    }

    /// What stands before every text, e.g. the begin token.
    pub fn prefix(&self) -> &[u32] {
        &self.special.prefix
    }

    /// What stands after every text, e.g. the end token.
    pub fn suffix(&self) -> &[u32] {
        &self.special.suffix
    }

    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_deref()
    }

    /// # Errors
    /// The base names no end token: a model could never learn where to stop.
    pub fn required_eos(&self) -> Result<u32> {
        self.special.eos.ok_or_else(|| {
            Error::tokenizer(SETTINGS_FILE, "eos_token", "missing; a model cannot learn to stop without it")
        })
    }
}

impl Special {
    fn find(inner: &tokenizers::Tokenizer, settings: &Settings) -> Result<Self> {
        let id = |token: &Option<String>| token.as_ref().and_then(|token| inner.token_to_id(token));
        let mut special = Self {
            bos: id(&settings.bos),
            eos: id(&settings.eos),
            pad: id(&settings.pad),
            unk: id(&settings.unk),
            ..Self::default()
        };
        let encode = |add_special| {
            let encoding = guarded("cannot encode the text \"a\"", || inner.encode("a", add_special));
            encoding.map(|encoding| encoding.get_ids().to_vec())
        };
        let (bare, full) = (encode(false)?, encode(true)?);
        let start = if bare.is_empty() { None } else { full.windows(bare.len()).position(|window| window == bare) };
        if let Some(start) = start {
            special.prefix = full[..start].to_vec();
            special.suffix = full[start + bare.len()..].to_vec();
        }
        Ok(special)
    }
}

/// What the library says, of `tokenizer.json`.
fn guarded<T>(failure: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let named = |error| Error::tokenizer(TOKENIZER_FILE, "", format!("{failure}: {error}"));
    contained(TOKENIZER_FILE, failure, || work().map_err(named))
}

/// The library answers some malformed files with a panic, when it reads them or when a text reaches the malformed place; a
/// hostile base must not take the process with it.
fn contained<T>(file: &str, failure: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let contradiction = |_| Err(Error::tokenizer(file, "", format!("{failure}: its parts contradict each other")));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(contradiction)
}

fn within(file: &str, size: usize, limit: usize) -> Result<()> {
    if size > limit {
        return Err(Error::tokenizer(file, "", format!("{size} bytes, the limit is {limit}")));
    }
    Ok(())
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary_size", &self.vocabulary_size())
            .field("special", &self.special)
            .finish()
    }
}

#[cfg(test)]
pub(crate) mod tests;
