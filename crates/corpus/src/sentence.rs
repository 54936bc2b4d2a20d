//! The patterns of whole sentences.

use crate::clause::{self, Anchor, be, copula, do_support, predicate, verb_for};
use crate::draft::Draft;
use crate::fault::FaultKind as F;
use crate::phrase::{self, Agreement, Frame, Subject};
use crate::words::{
    Complement, LONG_ADJECTIVES, NOUNS, NounClass, PERSON_ADJECTIVES, PREDICATES, SHORT_ADJECTIVES, TITLES, VERBS,
    inflect,
};

const FRAMES: [Frame; 8] =
    [Frame::Habit, Frame::Habit, Frame::Past, Frame::Past, Frame::Now, Frame::Future, Frame::Perfect, Frame::Modal];

/// Writes one sentence, end mark included.
pub(crate) fn sentence(d: &mut Draft<'_>) {
    let end = match d.below(100) {
        0..26 => plain(d),
        26..34 => fronted(d),
        34..42 => question(d),
        42..48 => existence(d),
        48..54 => quality(d),
        54..60 => comparison(d),
        60..64 => superlative(d),
        64..68 => profession(d),
        68..73 => preference(d),
        73..79 => coordination(d),
        79..85 => subordination(d),
        85..91 => relative(d),
        91..95 => passive(d),
        95..97 => indirect_question(d),
        _ => infinitive(d),
    };
    d.push(end);
    d.mechanical_faults();
}

fn frame(d: &mut Draft<'_>) -> Frame {
    *d.pick(&FRAMES)
}

/// `She always opens the old box.`
fn plain(d: &mut Draft<'_>) -> &'static str {
    let frame = frame(d);
    let subject = phrase::subject(d);
    predicate(d, subject, frame, Anchor::Here);
    "."
}

/// `Last week, she opened the old box.`
fn fronted(d: &mut Draft<'_>) -> &'static str {
    let frame = *d.pick(&[Frame::Habit, Frame::Past, Frame::Past, Frame::Future]);
    phrase::time(d, frame);
    d.push(",");
    let subject = phrase::subject(d);
    predicate(d, subject, frame, Anchor::Elsewhere);
    "."
}

/// `Where did she go yesterday?`, `Does she work every day?`
fn question(d: &mut Draft<'_>) -> &'static str {
    let past = d.chance(50);
    let word = if d.chance(60) { Some(*d.pick(&["where", "when", "why", "how"])) } else { None };
    if let Some(word) = word {
        d.push(word);
    }
    let at = d.words.len();
    // The auxiliary agrees with a subject that is written after it: write the subject, then put the auxiliary before.
    let auxiliary = d.push("did");
    let start = d.words.len();
    let subject = phrase::subject(d);
    let end = d.words.len();
    if past && word != Some("when") {
        let present = if subject.agreement == Agreement::Third { "does" } else { "do" };
        d.fault(F::Tense, auxiliary, 1, present);
    } else if !past {
        let (right, wrong) = if subject.agreement == Agreement::Third { ("does", "do") } else { ("do", "does") };
        d.words[auxiliary] = right.to_owned();
        if subject.certain {
            d.fault(F::Agreement, auxiliary, 1, wrong);
        }
    }
    if word.is_some() {
        let turned = format!("{} {}", d.words[start..end].join(" "), d.words[auxiliary]);
        d.fault(F::WordOrder, at, end - at, &turned);
    }
    let verb = verb_for(d, Frame::Past);
    clause::bare(d, verb);
    clause::complement(d, verb);
    if word != Some("when") {
        phrase::time(d, if past { Frame::Past } else { Frame::Habit });
    }
    "?"
}

/// `There are three cats in the garden.`
fn existence(d: &mut Draft<'_>) -> &'static str {
    let past = d.chance(40);
    d.push("there");
    let at = d.push("is");
    let classes = *d.pick(&[NounClass::Animal, NounClass::Food, NounClass::Thing, NounClass::Person]);
    let subject = phrase::counted(d, &[classes]);
    d.words[at] = be(subject.agreement, past).to_owned();
    let other = if subject.agreement == Agreement::Third { Agreement::Plural } else { Agreement::Third };
    if subject.certain {
        d.fault(F::Agreement, at, 1, be(other, past));
    }
    phrase::place(d);
    if past {
        d.fault(F::Tense, at, 1, be(subject.agreement, false));
        phrase::time(d, Frame::Past);
    }
    "."
}

/// `The boys were very tired yesterday.`
fn quality(d: &mut Draft<'_>) -> &'static str {
    let past = d.chance(60);
    let subject = phrase::subject(d);
    let at = copula(d, subject, past);
    if d.chance(30) {
        d.push("not");
    }
    if d.chance(40) {
        d.push("very");
    }
    let adjective = *d.pick(PERSON_ADJECTIVES);
    d.push(adjective);
    if past {
        d.fault(F::Tense, at, 1, be(subject.agreement, false));
        phrase::time(d, Frame::Past);
    }
    "."
}

/// `Anna is taller than her brother.`
fn comparison(d: &mut Draft<'_>) -> &'static str {
    let subject = phrase::subject(d);
    copula(d, subject, false);
    if d.chance(65) {
        let adjective = d.pick(SHORT_ADJECTIVES);
        let at = d.push(adjective.comparative);
        d.fault(F::Comparison, at, 1, &format!("more {}", adjective.comparative));
        d.fault(F::Comparison, at, 1, &format!("more {}", adjective.plain));
        d.fault(F::Comparison, at, 1, adjective.plain);
        d.fault(F::Comparison, at, 1, adjective.superlative);
    } else {
        let adjective = *d.pick(LONG_ADJECTIVES);
        let at = d.push("more");
        d.push(adjective);
        d.fault(F::Comparison, at, 1, "");
        d.fault(F::Comparison, at, 1, "most");
    }
    let at = d.push("than");
    d.fault(F::Comparison, at, 1, "then");
    if d.chance(40) {
        phrase::name(d);
    } else {
        phrase::counted(d, &[NounClass::Person]);
    }
    "."
}

/// `Ben is the tallest boy in the village.`
fn superlative(d: &mut Draft<'_>) -> &'static str {
    phrase::name(d);
    copula(d, Subject { agreement: Agreement::Third, certain: true }, false);
    let at = d.push("the");
    d.fault(F::ArticleMissing, at, 1, "");
    if d.chance(65) {
        let adjective = d.pick(SHORT_ADJECTIVES);
        let at = d.push(adjective.superlative);
        d.fault(F::Comparison, at, 1, &format!("most {}", adjective.superlative));
        d.fault(F::Comparison, at, 1, adjective.comparative);
    } else {
        let adjective = *d.pick(LONG_ADJECTIVES);
        let at = d.push("most");
        d.push(adjective);
        d.fault(F::Comparison, at, 1, "more");
    }
    let people: Vec<_> = NOUNS.iter().filter(|noun| noun.class == NounClass::Person).collect();
    let noun = d.pick(&people).singular(d.dialect);
    d.push(noun);
    phrase::place(d);
    "."
}

/// `Her sister is an engineer.`
fn profession(d: &mut Draft<'_>) -> &'static str {
    let (subject, at) = loop {
        let (words, faults) = (d.words.len(), d.faults.len());
        let subject = phrase::subject(d);
        if subject.agreement != Agreement::Plural {
            break (subject, copula(d, subject, false));
        }
        d.words.truncate(words);
        d.faults.truncate(faults);
    };
    let title = *d.pick(TITLES);
    let article = inflect::indefinite(title);
    let article_at = d.push(article);
    d.push(title);
    d.fault(F::ArticleMissing, article_at, 1, "");
    d.fault(F::ArticleChoice, article_at, 1, if article == "a" { "an" } else { "a" });
    phrase::place(d);
    debug_assert!(at < article_at && subject.agreement != Agreement::Plural);
    "."
}

/// `He is interested in these old books.`
fn preference(d: &mut Draft<'_>) -> &'static str {
    let subject = phrase::subject(d);
    copula(d, subject, false);
    if d.chance(25) {
        d.push("not");
    }
    let &(adjective, preposition) = d.pick(PREDICATES);
    d.push(adjective);
    let at = d.push(preposition);
    let wrong = *d.pick(&["in", "at", "of", "to", "for", "on"]);
    d.fault(F::PrepositionWrong, at, 1, wrong);
    match adjective {
        "married" | "similar" => phrase::person_object(d),
        "good" => {
            let verb = intransitive(d);
            let ing = d.push(verb.0);
            d.fault(F::VerbForm, ing, 1, &verb.1);
        }
        _ => {
            phrase::counted(d, &[NounClass::Animal, NounClass::Text, NounClass::Person]);
        }
    }
    "."
}

/// The progressive and the base form of a verb without an object.
fn intransitive(d: &mut Draft<'_>) -> (String, String) {
    let verbs: Vec<_> = VERBS.iter().filter(|verb| verb.complement == Complement::None).collect();
    let verb = d.pick(&verbs);
    (verb.progressive(d.dialect), verb.base(d.dialect))
}

/// `Yesterday, Ben washed the car and Anna cooked two eggs.`
fn coordination(d: &mut Draft<'_>) -> &'static str {
    let frame = *d.pick(&[Frame::Past, Frame::Past, Frame::Habit, Frame::Future]);
    phrase::time(d, frame);
    d.push(",");
    let first = phrase::subject(d);
    short_predicate(d, first, frame);
    let link = *d.pick(&["and", "but"]);
    d.push(link);
    d.next_clause();
    let second = phrase::subject(d);
    short_predicate(d, second, frame);
    "."
}

/// A positive predicate without an adverb or a time.
fn short_predicate(d: &mut Draft<'_>, subject: Subject, frame: Frame) {
    let verb = verb_for(d, frame);
    clause::positive(d, verb, subject, frame);
    clause::complement(d, verb);
}

/// `Because she was tired, Anna slept in the library yesterday.`
fn subordination(d: &mut Draft<'_>) -> &'static str {
    match d.below(3) {
        0 => {
            let conjunction = *d.pick(&["because", "although"]);
            d.push(conjunction);
            let subject = phrase::subject(d);
            let at = copula(d, subject, true);
            let adjective = *d.pick(PERSON_ADJECTIVES);
            d.push(adjective);
            d.push("yesterday");
            d.fault(F::Tense, at, 1, be(subject.agreement, false));
            d.push(",");
            d.next_clause();
            let subject = phrase::subject(d);
            short_predicate(d, subject, Frame::Past);
        }
        1 => {
            // In a condition the present stands for the future.
            d.push("if");
            let subject = phrase::subject(d);
            let verb = verb_for(d, Frame::Habit);
            let form = clause::present(d, verb, subject.agreement);
            let base = verb.base(d.dialect);
            let at = d.push(form);
            d.fault(F::Tense, at, 1, &format!("will {base}"));
            clause::complement(d, verb);
            d.push("tomorrow");
            d.push(",");
            d.next_clause();
            let subject = phrase::subject(d);
            short_predicate(d, subject, Frame::Future);
        }
        _ => {
            let subject = phrase::subject(d);
            short_predicate(d, subject, Frame::Habit);
            let conjunction = *d.pick(&["whenever", "because"]);
            d.push(conjunction);
            d.next_clause();
            let subject = phrase::subject(d);
            copula(d, subject, false);
            let adverb = *d.pick(&["always", "often", "usually"]);
            d.push(adverb);
            let adjective = *d.pick(PERSON_ADJECTIVES);
            d.push(adjective);
        }
    }
    "."
}

/// `The nurse who lives near the park bought a hat yesterday.`
fn relative(d: &mut Draft<'_>) -> &'static str {
    let person = d.chance(65);
    let subject = if person {
        phrase::counted(d, &[NounClass::Person])
    } else {
        phrase::counted(d, &[NounClass::Thing, NounClass::Text, NounClass::Garment])
    };
    let (right, wrong) = if person { ("who", "which") } else { ("which", "who") };
    let at = d.push(right);
    d.fault(F::Relative, at, 1, wrong);
    d.next_clause();
    if person {
        let (third, plural) = *d.pick(&[("lives", "live"), ("works", "work")]);
        let (form, other) = if subject.agreement == Agreement::Third { (third, plural) } else { (plural, third) };
        let at = d.push(form);
        if subject.certain {
            d.fault(F::Agreement, at, 1, other);
        }
        d.push("near");
        phrase::bare_place(d);
        d.next_clause();
        let frame = frame(d);
        predicate(d, subject, frame, Anchor::Here);
    } else {
        let at = copula(d, subject, true);
        d.fault(F::Tense, at, 1, be(subject.agreement, false));
        phrase::place(d);
        d.push("yesterday");
        d.next_clause();
        let (form, other) =
            if subject.agreement == Agreement::Third { ("belongs", "belong") } else { ("belong", "belongs") };
        let at = d.push(form);
        if subject.certain {
            d.fault(F::Agreement, at, 1, other);
        }
        let at = d.push("to");
        d.fault(F::PrepositionMissing, at, 1, "");
        d.fault(F::PrepositionWrong, at, 1, "for");
        phrase::person_object(d);
    }
    "."
}

/// `Three letters were written by Anna last week.`
fn passive(d: &mut Draft<'_>) -> &'static str {
    let verbs: Vec<_> =
        VERBS.iter().filter(|verb| verb.active && matches!(verb.complement, Complement::Object(_))).collect();
    let verb = *d.pick(&verbs);
    let Complement::Object(classes) = verb.complement else { return plain(d) };
    let subject = phrase::counted(d, classes);
    let at = copula(d, subject, true);
    d.fault(F::Tense, at, 1, be(subject.agreement, false));
    let participle = d.push(verb.participle(d.dialect));
    let (past, base) = (verb.past(d.dialect), verb.base(d.dialect));
    d.fault(F::VerbForm, participle, 1, &past);
    d.fault(F::VerbForm, participle, 1, &base);
    let by = d.push("by");
    d.fault(F::PrepositionWrong, by, 1, "from");
    phrase::person_object(d);
    phrase::time(d, Frame::Past);
    "."
}

/// `We do not know where she works.`
fn indirect_question(d: &mut Draft<'_>) -> &'static str {
    let asker = phrase::subject(d);
    do_support(d, asker, false);
    d.push("not");
    d.push("know");
    let word = *d.pick(&["where", "when", "why", "how"]);
    d.push(word);
    d.next_clause();
    let start = d.words.len();
    let subject = phrase::subject(d);
    let verb = verb_for(d, Frame::Habit);
    let form = clause::present(d, verb, subject.agreement);
    let at = d.push(form.clone());
    let (auxiliary, base) =
        if subject.agreement == Agreement::Third { ("does", verb.base(d.dialect)) } else { ("do", form) };
    let turned = format!("{auxiliary} {} {base}", d.words[start..at].join(" "));
    d.fault(F::WordOrder, start, at + 1 - start, &turned);
    clause::complement(d, verb);
    "."
}

/// `She wants to buy a hat.`, `They enjoy swimming.`
fn infinitive(d: &mut Draft<'_>) -> &'static str {
    let subject = phrase::subject(d);
    let third = subject.agreement == Agreement::Third;
    let gerund = d.chance(40);
    let (base, inflected) = if gerund {
        *d.pick(&[("enjoy", "enjoys"), ("avoid", "avoids")])
    } else {
        *d.pick(&[("want", "wants"), ("hope", "hopes"), ("plan", "plans")])
    };
    let (form, other) = if third { (inflected, base) } else { (base, inflected) };
    let at = d.push(form);
    if subject.certain {
        d.fault(F::Agreement, at, 1, other);
    }
    d.next_clause();
    let verb = verb_for(d, Frame::Now);
    if gerund {
        let at = d.push(verb.progressive(d.dialect));
        let base = verb.base(d.dialect);
        d.fault(F::VerbForm, at, 1, &format!("to {base}"));
        d.fault(F::VerbForm, at, 1, &base);
    } else {
        d.push("to");
        let at = clause::bare(d, verb);
        let progressive = verb.progressive(d.dialect);
        d.fault(F::VerbForm, at - 1, 2, &progressive);
    }
    clause::complement(d, verb);
    "."
}
