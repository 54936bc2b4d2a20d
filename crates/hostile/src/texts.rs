//! Tokenizers and chat templates.

use tailor_text::tokenizer::{Converted, Tokenizer, TokenizerFiles};
use tailor_text::{ChatOptions, ChatTemplate, Message};

use crate::{Refused, parts, refused};

/// Longer than a hostile tokenizer needs to show itself, and has what makes them diverge: blanks, upper case, marks,
/// an emoji, letters of other scripts.
const TEXT: &str = "Hello  wörld, ａ ﷺ 🙂\n<s>▁no</s> aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 1234";

/// `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` (none where it is empty) and a text to encode.
pub fn tokenizer_config(input: &[u8]) -> Refused {
    let [tokenizer, settings, template, text] = parts(input);
    let settings = Some(settings).filter(|settings| !settings.is_empty());
    let chat_template = Some(template).filter(|template| !template.is_empty());
    let tokenizer = Tokenizer::from_files(TokenizerFiles { tokenizer, settings, chat_template }).map_err(refused)?;
    encode_and_decode(&tokenizer, &[TEXT, std::str::from_utf8(text).unwrap_or_default()])
}

/// A folder of `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` (each missing where it is empty), a
/// text to encode, and the folder's `tokenizer.model`.
pub fn sentencepiece(input: &[u8]) -> Refused {
    let [settings, special, added, text, model] = parts(input);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("a temporary file");
    for (name, bytes) in
        [("tokenizer_config.json", settings), ("special_tokens_map.json", special), ("added_tokens.json", added)]
    {
        if !bytes.is_empty() {
            write(name, bytes);
        }
    }
    write("tokenizer.model", model);
    let converted = Converted::of_folder(folder.path()).map_err(refused)?.expect("the model that was written");
    let files =
        TokenizerFiles { tokenizer: &converted.tokenizer, settings: Some(&converted.settings), chat_template: None };
    let tokenizer = Tokenizer::from_files(files).map_err(refused)?;
    encode_and_decode(&tokenizer, &[TEXT, std::str::from_utf8(text).unwrap_or_default()])
}

fn encode_and_decode(tokenizer: &Tokenizer, texts: &[&str]) -> Refused {
    for text in texts {
        let ids = tokenizer.encode_with_special(text).map_err(refused)?;
        tokenizer.decode(&ids, true).map_err(refused)?;
    }
    Ok(())
}

/// A template and the messages as JSON; where these are none, a conversation of our own.
pub fn chat_template(input: &[u8]) -> Refused {
    let [source, messages] = parts(input);
    let source = std::str::from_utf8(source).map_err(refused)?;
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.into(), text.into()));
    let template = ChatTemplate::parse_with_clock(source, special.into(), std::sync::Arc::new(|| 1_700_000_000));
    let messages: Vec<Message> = serde_json::from_slice(messages).unwrap_or_else(|_| conversation());
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let rendered = template.map_err(refused)?.render_with_spans(&messages, &options).map_err(refused)?;
    assert!(rendered.text.len() <= 8 << 20, "{} bytes of output", rendered.text.len());
    for span in rendered.spoken {
        assert!(rendered.text.get(span).is_some(), "a span outside the text");
    }
    Ok(())
}

fn conversation() -> Vec<Message> {
    let turns = [("system", "Be brief."), ("user", "Corrct this."), ("assistant", "Correct this."), ("user", "Thanks")];
    turns.map(|(role, text)| Message::new(role, text)).into()
}
