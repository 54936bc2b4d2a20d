use super::*;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

fn template(source: &str) -> ChatTemplate {
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.into(), token.into()));
    ChatTemplate::parse_with_clock(source, special.into(), Arc::new(|| 1_722_000_000)).expect("valid template")
}

fn hello() -> Vec<Message> {
    vec![Message::new("user", "Hi <b>&</b>")]
}

#[test]
fn messages_and_the_generation_prompt_are_rendered() {
    assert_eq!(
        template(CHATML).render(&hello(), true).expect("renders"),
        "<|im_start|>user\nHi <b>&</b><|im_end|>\n<|im_start|>assistant\n"
    );
    assert!(template(CHATML).render(&hello(), false).expect("renders").ends_with("<|im_end|>\n"));
}

#[test]
fn blocks_are_trimmed_as_in_transformers() {
    let source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m.content | trim }}\n  {% endfor %}\nend";
    assert_eq!(template(source).render(&hello(), false).expect("renders"), "<s>\nHi <b>&</b>\nend");
}

#[test]
fn python_methods_and_namespaces_work() {
    let source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
                  {% if m.content.startswith('Hi') and not m.content.endswith('x') %}{{ m.content.strip().upper() }}\
                  {% endif %}{{ m.get('name', 'nobody') }}{% endfor %}{{ ns.n }}{{ messages[-1]['role'].title() }}";
    assert_eq!(template(source).render(&hello(), false).expect("renders"), "HI <B>&</B>nobody1User");
}

#[test]
fn tojson_is_pythons_and_not_html_safe() {
    let source = "{{ messages | tojson }}";
    assert_eq!(
        template(source).render(&[Message::new("user", "ü <b> \"q\"")], false).expect("renders"),
        r#"[{"role": "user", "content": "ü <b> \"q\""}]"#
    );
    let indented =
        template("{{ {'a': [1, 2], 'b': {}} | tojson(indent=2) }}").render(&hello(), false).expect("renders");
    assert_eq!(indented, "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}");
}

#[test]
fn a_template_may_refuse_and_its_words_come_through() {
    let source =
        "{% if messages[0].role != 'system' %}{{ raise_exception('the first message must be system') }}{% endif %}";
    let error = template(source).render(&hello(), false).expect_err("refused");
    assert!(error.to_string().contains("the first message must be system"), "{error}");
}

#[test]
fn the_date_comes_from_the_clock() {
    assert_eq!(template("{{ strftime_now('%d %b %Y') }}").render(&hello(), false).expect("renders"), "26 Jul 2024");
}

#[test]
fn generation_marks_have_no_effect() {
    let source = "{% for m in messages %}{%- generation %}{{ m.content }}{% endgeneration -%} {% endfor %}";
    assert_eq!(template(source).render(&hello(), false).expect("renders"), "Hi <b>&</b>");
}

#[test]
fn unset_special_tokens_print_nothing() {
    assert_eq!(template("[{{ pad_token }}{% if tools %}t{% endif %}]").render(&hello(), false).expect("renders"), "[]");
}

#[test]
fn endless_work_is_stopped() {
    for hostile in [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ] {
        assert!(template(hostile).render(&hello(), false).is_err(), "{hostile} must be stopped");
    }
}

#[test]
fn a_broken_template_says_where() {
    let error = ChatTemplate::parse("line one\n{% for x in %}", SpecialTexts::default()).expect_err("syntax");
    assert!(error.to_string().contains(":2"), "{error}");
    let huge = "x".repeat(MAX_TEMPLATE_BYTES + 1);
    assert!(ChatTemplate::parse(&huge, SpecialTexts::default()).is_err(), "templates are bounded");
}

#[test]
fn a_template_cannot_include_files() {
    for source in ["{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os }}"] {
        let rendered = ChatTemplate::parse(source, SpecialTexts::default()).and_then(|t| t.render(&hello(), false));
        assert!(rendered.is_err(), "{source}");
    }
}

#[test]
fn tools_have_a_template_of_their_own_where_the_base_names_one() {
    let both = template("plain").with_tool_template("{{ tools | length }} tools").expect("valid");
    let options = ChatOptions { tools: Some(vec![serde_json::json!({"type": "function"})]), ..ChatOptions::default() };
    assert_eq!(both.render_with(&hello(), &options).expect("renders"), "1 tools");
    assert_eq!(both.render(&hello(), false).expect("renders"), "plain");
    assert_eq!(template("plain").render_with(&hello(), &options).expect("renders"), "plain");
}

#[test]
fn a_variable_may_overrule_a_special_token_but_no_message() {
    let with = |name: &str| {
        let variables = [(name.to_owned(), serde_json::json!("mine"))].into_iter().collect();
        template("{{ bos_token }}").render_with(&hello(), &ChatOptions { variables, ..ChatOptions::default() })
    };
    assert_eq!(with("bos_token").expect("renders"), "mine");
    for taken in ["messages", "tools", "add_generation_prompt"] {
        assert!(with(taken).expect_err("taken").to_string().contains(taken));
    }
}

#[test]
fn an_empty_conversation_is_refused() {
    assert!(template("x").render(&[], false).expect_err("nothing to say").to_string().contains("at least one"));
}

#[test]
fn spans_that_cannot_be_followed_are_refused() {
    let spans = |source: &str, content: &str| {
        template(source).render_with_spans(&[Message::new("assistant", content)], &ChatOptions::default())
    };
    let plain = "<{% generation %}{{ messages[0].content }}{% endgeneration %}>";
    let rendered = spans(plain, "größe").expect("renders");
    assert_eq!(rendered.text, "<größe>");
    assert_eq!(rendered.spoken, std::iter::once(1..8).collect::<Vec<_>>());
    assert!(spans(plain, "a\u{FDD0}").expect_err("a mark of ours").to_string().contains("FDD0"));
    let counted = "{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ x | length }}";
    assert!(spans(counted, "a").expect_err("counts the marks").to_string().contains("generation block"));
    let moved = "{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}({{ x }})";
    assert_eq!(spans(moved, "a").expect("renders").spoken.first(), Some(&(1..2)));
}

#[test]
fn a_value_without_end_is_stopped() {
    for hostile in [
        "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=['xxxxxxxx']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ [1] | tojson(indent=1000000000) }}",
    ] {
        assert!(template(hostile).render(&hello(), false).is_err(), "{hostile} must be stopped");
    }
}
