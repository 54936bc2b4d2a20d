//! Verb groups and their complements.

use crate::draft::Draft;
use crate::fault::FaultKind as F;
use crate::phrase::{self, Agreement, Frame, Subject};
use crate::words::{ADVERBS, Complement, NounClass, VERBS, Verb};

const FREQUENCY: [&str; 5] = ["always", "usually", "often", "sometimes", "never"];
const MODALS: [&str; 5] = ["can", "must", "should", "may", "might"];

/// Where the expression that fixes the tense stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// At the end of this clause, or as an adverb before its verb.
    Here,
    /// In front of the sentence or in the clause before.
    Elsewhere,
}

/// The forms of `be` in the present and in the past.
pub(crate) fn be(agreement: Agreement, past: bool) -> &'static str {
    match (agreement, past) {
        (Agreement::First, false) => "am",
        (Agreement::Third, false) => "is",
        (Agreement::Plural, false) => "are",
        (Agreement::Plural, true) => "were",
        (_, true) => "was",
    }
}

/// The other number's form of `be`.
fn wrong_be(agreement: Agreement, past: bool) -> &'static str {
    match agreement {
        Agreement::Plural => be(Agreement::Third, past),
        _ => be(Agreement::Plural, past),
    }
}

/// Writes the form of `be` that agrees with `subject`.
pub(crate) fn copula(d: &mut Draft<'_>, subject: Subject, past: bool) -> usize {
    let at = d.push(be(subject.agreement, past));
    if subject.certain {
        d.fault(F::Agreement, at, 1, wrong_be(subject.agreement, past));
    }
    at
}

/// The present tense of `verb` for `agreement`.
pub(crate) fn present(d: &Draft<'_>, verb: &Verb, agreement: Agreement) -> String {
    if agreement == Agreement::Third { verb.third(d.dialect) } else { verb.base(d.dialect) }
}

fn wrong_present(d: &Draft<'_>, verb: &Verb, agreement: Agreement) -> String {
    if agreement == Agreement::Third { verb.base(d.dialect) } else { verb.third(d.dialect) }
}

/// A verb that fits `frame`.
pub(crate) fn verb_for(d: &mut Draft<'_>, frame: Frame) -> &'static Verb {
    loop {
        let verb = d.pick(VERBS);
        if verb.active || matches!(frame, Frame::Habit | Frame::Past) {
            return verb;
        }
    }
}

/// Verb, complement, manner, place and, with [`Anchor::Here`], the time.
pub(crate) fn predicate(d: &mut Draft<'_>, subject: Subject, frame: Frame, anchor: Anchor) {
    let verb = verb_for(d, frame);
    let negated = d.chance(18);
    let mut anchored = anchor == Anchor::Elsewhere;
    if negated {
        negative_group(d, verb, subject, frame);
    } else {
        anchored |= positive_group(d, verb, subject, frame, anchor);
    }
    let is_anything = negated && matches!(verb.complement, Complement::Object(_)) && d.chance(60);
    if is_anything {
        let at = d.push("anything");
        d.fault(F::Negation, at, 1, "nothing");
    } else {
        complement(d, verb);
    }
    if verb.active && !negated && d.chance(18) {
        manner(d);
    }
    if !anchored && (frame != Frame::Modal || d.chance(50)) {
        phrase::time(d, frame);
    }
}

/// A positive verb group whose tense is fixed elsewhere.
pub(crate) fn positive(d: &mut Draft<'_>, verb: &Verb, subject: Subject, frame: Frame) {
    positive_group(d, verb, subject, frame, Anchor::Elsewhere);
}

/// The finite verb and what belongs to it. Says whether an adverb in it has fixed the tense.
fn positive_group(d: &mut Draft<'_>, verb: &Verb, subject: Subject, frame: Frame, anchor: Anchor) -> bool {
    let agreement = subject.agreement;
    let base = verb.base(d.dialect);
    match frame {
        Frame::Habit => {
            let adverb = if anchor == Anchor::Here && d.chance(60) { Some(*d.pick(&FREQUENCY)) } else { None };
            if let Some(adverb) = adverb {
                d.push(adverb);
            }
            let form = present(d, verb, agreement);
            let at = d.push(form.clone());
            if let Some(adverb) = adverb {
                d.fault(F::WordOrder, at - 1, 2, &format!("{form} {adverb}"));
            }
            if subject.certain {
                let wrong = wrong_present(d, verb, agreement);
                d.fault(F::Agreement, at, 1, &wrong);
            }
            adverb.is_some()
        }
        Frame::Past => {
            let at = d.push(verb.past(d.dialect));
            let today = present(d, verb, agreement);
            d.fault(F::Tense, at, 1, &today);
            let participle = verb.participle(d.dialect);
            d.fault(F::VerbForm, at, 1, &participle);
            false
        }
        Frame::Now => {
            let at = copula(d, subject, false);
            let ing = d.push(verb.progressive(d.dialect));
            d.fault(F::VerbForm, ing, 1, &base);
            let simple = present(d, verb, agreement);
            d.fault(F::Tense, at, 2, &simple);
            false
        }
        Frame::Future => {
            let at = d.push("will");
            let bare = d.push(base);
            let (third, past) = (verb.third(d.dialect), verb.past(d.dialect));
            let wrong = if d.chance(50) { third } else { past.clone() };
            d.fault(F::VerbForm, bare, 1, &wrong);
            d.fault(F::Tense, at, 2, &past);
            false
        }
        Frame::Perfect => {
            have(d, subject);
            let early = anchor == Anchor::Here && d.chance(60);
            if early {
                let adverb = *d.pick(&["already", "just"]);
                d.push(adverb);
            }
            perfect_participle(d, verb);
            early
        }
        Frame::Modal => {
            let modal = *d.pick(&MODALS);
            d.push(modal);
            bare(d, verb);
            false
        }
    }
}

fn negative_group(d: &mut Draft<'_>, verb: &Verb, subject: Subject, frame: Frame) {
    match frame {
        Frame::Habit => {
            do_support(d, subject, false);
            d.push("not");
            bare(d, verb);
        }
        Frame::Past => {
            do_support(d, subject, true);
            d.push("not");
            bare(d, verb);
        }
        Frame::Now => {
            copula(d, subject, false);
            d.push("not");
            let base = verb.base(d.dialect);
            let at = d.push(verb.progressive(d.dialect));
            d.fault(F::VerbForm, at, 1, &base);
        }
        Frame::Future => {
            d.push("will");
            d.push("not");
            bare(d, verb);
        }
        Frame::Perfect => {
            have(d, subject);
            d.push("not");
            perfect_participle(d, verb);
        }
        Frame::Modal => {
            let modal = *d.pick(&MODALS);
            d.push(modal);
            d.push("not");
            bare(d, verb);
        }
    }
}

/// `do`, `does` or `did`.
pub(crate) fn do_support(d: &mut Draft<'_>, subject: Subject, past: bool) -> usize {
    let (right, wrong) = if subject.agreement == Agreement::Third { ("does", "do") } else { ("do", "does") };
    if past {
        let at = d.push("did");
        d.fault(F::Tense, at, 1, right);
        return at;
    }
    let at = d.push(right);
    if subject.certain {
        d.fault(F::Agreement, at, 1, wrong);
    }
    at
}

fn have(d: &mut Draft<'_>, subject: Subject) {
    let (right, wrong) = if subject.agreement == Agreement::Third { ("has", "have") } else { ("have", "has") };
    let at = d.push(right);
    if subject.certain {
        d.fault(F::Agreement, at, 1, wrong);
    }
}

/// The participle after `have`, which is often confused with the past or left bare.
fn perfect_participle(d: &mut Draft<'_>, verb: &Verb) {
    let at = d.push(verb.participle(d.dialect));
    let (past, base) = (verb.past(d.dialect), verb.base(d.dialect));
    d.fault(F::VerbForm, at, 1, &past);
    d.fault(F::VerbForm, at, 1, &base);
}

/// The base form after a modal, `do` or `to`.
pub(crate) fn bare(d: &mut Draft<'_>, verb: &Verb) -> usize {
    let at = d.push(verb.base(d.dialect));
    let wrong = match d.below(3) {
        0 => verb.third(d.dialect),
        1 => verb.past(d.dialect),
        _ => verb.progressive(d.dialect),
    };
    d.fault(F::VerbForm, at, 1, &wrong);
    at
}

/// What the verb asks for.
pub(crate) fn complement(d: &mut Draft<'_>, verb: &Verb) {
    match verb.complement {
        Complement::None => {
            if d.chance(60) {
                phrase::place(d);
            }
        }
        Complement::Object(classes) => object(d, classes),
        Complement::Mass(class) => phrase::mass(d, class),
        Complement::BarePlace => {
            let at = d.words.len();
            phrase::bare_place(d);
            let wrong = *d.pick(&["to the", "at the"]);
            d.fault(F::PrepositionExtra, at, 1, wrong);
        }
        Complement::Preposition(preposition, classes) => {
            let at = d.push(preposition);
            let wrong = *d.pick(&["to", "for", "at", "on", "about", "of"]);
            d.fault(F::PrepositionWrong, at, 1, wrong);
            d.fault(F::PrepositionMissing, at, 1, "");
            object(d, classes);
        }
        Complement::Receiver(classes) => {
            object(d, classes);
            let at = d.push("to");
            phrase::person_object(d);
            let wrong = *d.pick(&["at", "of"]);
            d.fault(F::PrepositionWrong, at, 1, wrong);
        }
    }
}

fn object(d: &mut Draft<'_>, classes: &[NounClass]) {
    if classes.contains(&NounClass::Person) && d.chance(60) {
        phrase::person_object(d);
    } else {
        phrase::counted(d, classes);
    }
}

fn manner(d: &mut Draft<'_>) {
    let adverb = d.pick(ADVERBS);
    let at = d.push(adverb.adverb);
    d.fault(F::AdverbForm, at, 1, adverb.adjective);
}
