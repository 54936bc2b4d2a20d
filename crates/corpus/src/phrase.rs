//! Noun phrases, pronouns, places and time expressions.

use crate::draft::{DAYS, Draft, MONTHS};
use crate::fault::FaultKind as F;
use crate::words::{
    MASS, Mass, MassClass, NAMES, NOUNS, Noun, NounClass, PERSON_ADJECTIVES, PLACES, THING_ADJECTIVES, inflect,
};

/// What the verb agrees with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    First,
    Third,
    Plural,
}

/// A subject as the verb sees it. `certain`: words other than the verb fix the number, so a wrong verb is an error of
/// the verb and not of the noun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub agreement: Agreement,
    pub certain: bool,
}

/// What the time expressions say, and so which tense must stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Habit,
    Past,
    Now,
    Future,
    Perfect,
    Modal,
}

const SUBJECT_PRONOUNS: [(&str, &str, Agreement); 6] = [
    ("I", "me", Agreement::First),
    ("he", "him", Agreement::Third),
    ("she", "her", Agreement::Third),
    ("we", "us", Agreement::Plural),
    ("they", "them", Agreement::Plural),
    ("you", "you", Agreement::Plural),
];

const POSSESSIVES: [(&str, &str); 5] = [("my", "me"), ("his", "he"), ("her", "she"), ("our", "us"), ("their", "they")];
const NUMERALS: [&str; 5] = ["two", "three", "four", "five", "ten"];

pub(crate) fn subject(d: &mut Draft<'_>) -> Subject {
    match d.below(100) {
        0..30 => {
            let &(subject, object, agreement) = d.pick(&SUBJECT_PRONOUNS);
            let at = d.push(subject);
            d.fault(F::PronounCase, at, 1, object);
            Subject { agreement, certain: true }
        }
        30..48 => {
            name(d);
            Subject { agreement: Agreement::Third, certain: true }
        }
        48..56 => {
            name(d);
            d.push("and");
            name(d);
            Subject { agreement: Agreement::Plural, certain: true }
        }
        _ => counted(d, &[NounClass::Person]),
    }
}

/// A person, an animal or a thing, with a determiner and perhaps an adjective.
pub(crate) fn counted(d: &mut Draft<'_>, classes: &[NounClass]) -> Subject {
    let nouns: Vec<&Noun> = NOUNS.iter().filter(|noun| classes.contains(&noun.class)).collect();
    let noun = *d.pick(&nouns);
    if d.chance(50) { singular(d, noun) } else { plural(d, noun) }
}

fn singular(d: &mut Draft<'_>, noun: &Noun) -> Subject {
    let word = noun.singular(d.dialect);
    let many = noun.plural(d.dialect);
    let adjective = if d.chance(35) { Some(adjective_for(d, noun.class)) } else { None };
    let mut certain = true;
    let mut fixed_number = false;
    match d.below(100) {
        0..40 => {
            let first = adjective.as_deref().unwrap_or(&word);
            let article = inflect::indefinite(first);
            let at = d.push(article);
            d.fault(F::ArticleChoice, at, 1, if article == "a" { "an" } else { "a" });
        }
        40..60 => {
            d.push("the");
            certain = false;
        }
        60..70 => {
            d.push("this");
        }
        70..82 => {
            let determiner = *d.pick(&["every", "each"]);
            d.push(determiner);
            fixed_number = true;
        }
        _ => {
            possessive(d);
            certain = false;
        }
    }
    let at = adjective_and_noun(d, adjective, &word);
    if fixed_number {
        d.fault(F::NounNumber, at, 1, &many);
    }
    Subject { agreement: Agreement::Third, certain }
}

fn plural(d: &mut Draft<'_>, noun: &Noun) -> Subject {
    let word = noun.plural(d.dialect);
    let one = noun.singular(d.dialect);
    let mut certain = true;
    let mut fixed_number = false;
    match d.below(100) {
        0..28 => {
            let numeral = *d.pick(&NUMERALS);
            d.push(numeral);
            fixed_number = true;
        }
        28..40 => {
            let at = d.push("many");
            d.fault(F::Quantifier, at, 1, "much");
            fixed_number = true;
        }
        40..50 => {
            d.push("several");
            fixed_number = true;
        }
        50..60 => {
            let at = d.phrase("a few");
            d.fault(F::Quantifier, at, 2, "a little");
            fixed_number = true;
        }
        60..72 => {
            d.push("these");
        }
        72..86 => {
            d.push("the");
            certain = false;
        }
        _ => {
            possessive(d);
            certain = false;
        }
    }
    let adjective = if d.chance(30) { Some(adjective_for(d, noun.class)) } else { None };
    let at = adjective_and_noun(d, adjective, &word);
    if fixed_number {
        d.fault(F::NounNumber, at, 1, &one);
    }
    Subject { agreement: Agreement::Plural, certain }
}

/// Writes the noun behind its adjective and says where the noun stands.
fn adjective_and_noun(d: &mut Draft<'_>, adjective: Option<String>, noun: &str) -> usize {
    let Some(adjective) = adjective else { return d.push(noun) };
    let at = d.push(adjective.clone());
    d.push(noun);
    d.fault(F::WordOrder, at, 2, &format!("{noun} {adjective}"));
    at + 1
}

fn adjective_for(d: &mut Draft<'_>, class: NounClass) -> String {
    match class {
        NounClass::Person | NounClass::Animal => (*d.pick(PERSON_ADJECTIVES)).to_owned(),
        _ => d.pick(THING_ADJECTIVES).of(d.dialect).to_owned(),
    }
}

fn possessive(d: &mut Draft<'_>) {
    if d.chance(35) {
        name(d);
        let at = d.push("'s");
        d.fault(F::Possessive, at, 1, "");
    } else {
        let &(possessive, wrong) = d.pick(&POSSESSIVES);
        let at = d.push(possessive);
        d.fault(F::Possessive, at, 1, wrong);
    }
}

pub(crate) fn name(d: &mut Draft<'_>) {
    let name = *d.pick(NAMES);
    let at = d.push(name);
    d.fault(F::ArticleExtra, at, 1, &format!("the {name}"));
}

/// A person as object: a pronoun, a name or a noun phrase.
pub(crate) fn person_object(d: &mut Draft<'_>) {
    match d.below(100) {
        0..45 => {
            let &(subject, object, _) = d.pick(&SUBJECT_PRONOUNS);
            let at = d.push(object);
            d.fault(F::PronounCase, at, 1, subject);
        }
        45..65 => name(d),
        _ => {
            counted(d, &[NounClass::Person]);
        }
    }
}

pub(crate) fn mass(d: &mut Draft<'_>, class: MassClass) {
    let words: Vec<&Mass> = MASS.iter().filter(|mass| mass.class == class).collect();
    let word = d.pick(&words).word;
    match d.below(3) {
        0 => {
            let at = d.phrase("too much");
            d.fault(F::Quantifier, at, 2, "too many");
        }
        1 => {
            let at = d.phrase("a little");
            d.fault(F::Quantifier, at, 2, "a few");
        }
        _ => {
            d.push("some");
        }
    }
    d.push(word);
}

/// `in the garden`.
pub(crate) fn place(d: &mut Draft<'_>) {
    let place = d.pick(PLACES);
    d.push(place.preposition);
    the_place(d, place.noun(d.dialect));
}

/// `the garden`.
pub(crate) fn bare_place(d: &mut Draft<'_>) {
    let place = d.pick(PLACES);
    the_place(d, place.noun(d.dialect));
}

fn the_place(d: &mut Draft<'_>, noun: &str) {
    let at = d.push("the");
    d.push(noun);
    d.fault(F::ArticleMissing, at, 1, "");
}

/// The expression that fixes the tense of `frame`. A habit or a finished action may carry its mark before the verb
/// instead; see [`crate::clause`].
pub(crate) fn time(d: &mut Draft<'_>, frame: Frame) {
    match frame {
        Frame::Habit => match d.below(3) {
            0 => {
                let count = *d.pick(&["once a", "twice a"]);
                d.phrase(count);
                let unit = *d.pick(&["day", "week", "month", "year"]);
                d.push(unit);
            }
            _ => {
                d.push("every");
                let unit = *d.pick(&["day", "week", "month", "morning", "evening", "summer", "winter"]);
                d.push(unit);
            }
        },
        Frame::Past => match d.below(10) {
            0..3 => {
                d.push("yesterday");
            }
            3..7 => {
                d.push("last");
                let unit = *d.pick(&["night", "week", "month", "year", "summer", "winter", "Monday", "Friday"]);
                d.push(unit);
            }
            _ => {
                let numeral = *d.pick(&NUMERALS);
                d.push(numeral);
                let (one, many) =
                    *d.pick(&[("day", "days"), ("week", "weeks"), ("month", "months"), ("year", "years")]);
                let at = d.push(many);
                d.push("ago");
                d.fault(F::NounNumber, at, 1, one);
                d.fault(F::WordOrder, at - 1, 3, &format!("ago {numeral} {many}"));
            }
        },
        Frame::Now => {
            let phrase = *d.pick(&["right now", "at the moment", "now"]);
            d.phrase(phrase);
        }
        Frame::Future => match d.below(3) {
            0 => {
                d.push("tomorrow");
            }
            _ => {
                d.push("next");
                let unit = *d.pick(&["week", "month", "year", "summer", "winter", "Monday", "Friday"]);
                d.push(unit);
            }
        },
        Frame::Perfect => {
            let at = d.push("since");
            if d.chance(50) {
                let day = *d.pick(&DAYS);
                d.push(day);
            } else {
                d.phrase("last");
                let unit = *d.pick(&["week", "month", "year", "summer"]);
                d.push(unit);
            }
            d.fault(F::PrepositionWrong, at, 1, "for");
        }
        Frame::Modal => moment(d),
    }
}

/// A point in time with its fixed preposition.
pub(crate) fn moment(d: &mut Draft<'_>) {
    let (preposition, wrong, phrase) = match d.below(4) {
        0 => ("on", ["in", "at"], *d.pick(&DAYS)),
        1 => ("in", ["on", "at"], *d.pick(&MONTHS)),
        2 => ("at", ["in", "on"], *d.pick(&["noon", "midnight", "night"])),
        _ => ("in", ["on", "at"], *d.pick(&["the morning", "the evening", "the afternoon"])),
    };
    let at = d.push(preposition);
    let wrong = *d.pick(&wrong);
    d.phrase(phrase);
    d.fault(F::PrepositionWrong, at, 1, wrong);
}
