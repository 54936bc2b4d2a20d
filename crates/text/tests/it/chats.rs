//! Templates rendered beside transformers (tests/golden/make_chat.py).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use tailor_text::{ChatOptions, ChatTemplate, Message, Tokenizer, TokenizerFiles};

use crate::golden;

#[derive(Deserialize)]
struct Golden {
    now: u64,
    special: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<Message>>,
    tools: BTreeMap<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    #[serde(default)]
    add_generation_prompt: bool,
    tools: Option<Vec<String>>,
    documents: Option<Vec<Value>>,
    #[serde(default)]
    variables: Map<String, Value>,
    rendered: Option<String>,
    refused: Option<String>,
}

/// What the engine has not: refused, never rendered otherwise than Python does.
const REFUSED: [&str; 22] = [
    "bare tuple",
    "callable",
    "casefold",
    "center filter",
    "cycler",
    "dict of pairs",
    "digits of Unicode",
    "encode",
    "filesizeformat",
    "int of no number",
    "istitle",
    "lipsum",
    "macro with rest",
    "percent of several",
    "pprint",
    "start of a search",
    "striptags",
    "swapcase",
    "truncate",
    "urlencode",
    "wordcount",
    "wordwrap",
];
/// Where Python refuses and the engine compares whatever it is given, or allows a name.
const LENIENT: [&str; 3] = ["mixed comparison", "namespace of a private name", "undefined compared"];

#[derive(Deserialize)]
struct Marked {
    masks: Masks,
}

#[derive(Deserialize)]
struct Masks {
    templates: BTreeMap<String, String>,
    turns: Vec<Vec<Message>>,
    tokenizer: Value,
    settings: Value,
    rows: Vec<MaskRow>,
}

#[derive(Deserialize)]
struct MaskRow {
    template: String,
    turns: usize,
    ids: Vec<u32>,
    mask: Vec<u8>,
    rendered: String,
}

#[test]
fn what_the_assistant_said_is_masked_as_transformers_masks_it() {
    let Marked { masks } = golden("chats.json");
    let (tokenizer, settings) = (masks.tokenizer.to_string(), masks.settings.to_string());
    let files =
        TokenizerFiles { tokenizer: tokenizer.as_bytes(), settings: Some(settings.as_bytes()), chat_template: None };
    let tokenizer = Tokenizer::from_files(files).expect("a tokenizer");
    let mut counted = 0;
    for row in &masks.rows {
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.into(), token.into()));
        let template = ChatTemplate::parse(&masks.templates[&row.template], special.into()).expect("a template");
        let name = format!("{} of {:?}", row.template, masks.turns[row.turns]);
        let rendered = template
            .render_with_spans(&masks.turns[row.turns], &ChatOptions::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(rendered.text, row.rendered, "{name}");
        let (ids, in_loss) = tokenizer.encode_with_spans(&rendered.text, &rendered.spoken).expect("encodes");
        assert_eq!(ids, row.ids, "{name}");
        let mask: Vec<bool> = row.mask.iter().map(|one| *one == 1).collect();
        assert_eq!(in_loss, mask, "{name}: {:?}", rendered.spoken);
        counted += mask.iter().filter(|one| **one).count();
    }
    assert!(counted > 100, "the table holds what the assistant said");
}

#[test]
fn chats_are_rendered_as_transformers_renders_them() {
    let golden: Golden = golden("chats.json");
    let now = golden.now;
    let mut wrong = Vec::new();
    for case in &golden.cases {
        let source = &golden.templates[&case.template];
        let options = ChatOptions {
            add_generation_prompt: case.add_generation_prompt,
            tools: case.tools.as_ref().map(|names| names.iter().map(|name| golden.tools[name].clone()).collect()),
            documents: case.documents.clone(),
            variables: case.variables.clone(),
        };
        let ours = ChatTemplate::parse_with_clock(source, golden.special.clone(), Arc::new(move || now))
            .and_then(|template| template.render_with(&golden.conversations[&case.conversation], &options));
        let name = format!("{} of {}", case.template, case.conversation);
        let refused = REFUSED.contains(&case.template.as_str());
        match (&case.rendered, ours) {
            (_, Err(_)) if refused => {}
            (None, Ok(_)) if LENIENT.contains(&case.template.as_str()) => {}
            (Some(theirs), Ok(ours)) if ours == *theirs => {}
            (Some(theirs), Ok(ours)) => wrong.push(format!("{name}:\n  theirs {theirs:?}\n  ours   {ours:?}")),
            (Some(theirs), Err(error)) => {
                wrong.push(format!("{name}:\n  theirs {theirs:?}\n  ours   refused: {error}"))
            }
            (None, Ok(ours)) => wrong.push(format!("{name}:\n  theirs refused: {:?}\n  ours   {ours:?}", case.refused)),
            (None, Err(_)) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), golden.cases.len(), wrong.join("\n"));
}
