use super::*;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

fn template(source: &str) -> ChatTemplate {
    let special = SpecialTexts { bos: Some("<s>".into()), eos: Some("</s>".into()), ..SpecialTexts::default() };
    ChatTemplate::parse_with_clock(source, special, Arc::new(|| 1_722_000_000)).expect("valid template")
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
    let indented = template("{{ {'a': [1, 2], 'b': {}} | tojson(indent=2) }}").render(&[], false).expect("renders");
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
    assert_eq!(template("{{ strftime_now('%d %b %Y') }}").render(&[], false).expect("renders"), "26 Jul 2024");
}

#[test]
fn generation_marks_have_no_effect() {
    let source = "{% for m in messages %}{%- generation %}{{ m.content }}{% endgeneration -%} {% endfor %}";
    assert_eq!(template(source).render(&hello(), false).expect("renders"), "Hi <b>&</b>");
}

#[test]
fn unset_special_tokens_print_nothing() {
    assert_eq!(template("[{{ pad_token }}{% if tools %}t{% endif %}]").render(&[], false).expect("renders"), "[]");
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
        let rendered = ChatTemplate::parse(source, SpecialTexts::default()).and_then(|t| t.render(&[], false));
        assert!(rendered.is_err(), "{source}");
    }
}
