//! Verbs with their five forms and the complement that each takes.

use super::{Dialect, MassClass, NounClass, Spelling, inflect, same};

/// What stands after the verb.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Complement {
    /// Nothing, or a place: `sleep`.
    None,
    /// A countable noun of one of the classes: `open a box`.
    Object(&'static [NounClass]),
    /// A mass noun: `drink water`.
    Mass(MassClass),
    /// A place without a preposition, which learners like to add: `visit the museum`.
    BarePlace,
    /// A fixed preposition and a countable noun: `wait for a friend`.
    Preposition(&'static str, &'static [NounClass]),
    /// A thing and a receiver: `give the book to her`.
    Receiver(&'static [NounClass]),
}

#[derive(Clone, Copy, Debug)]
pub struct Verb {
    base: Spelling,
    /// `[past, participle, progressive]`; an empty one is regular.
    irregular: [Spelling; 3],
    pub complement: Complement,
    /// Whether the verb tells of an activity, so that `is …ing right now` and a manner adverb fit.
    pub active: bool,
}

impl Verb {
    pub fn base(&self, dialect: Dialect) -> String {
        self.base.of(dialect).to_owned()
    }

    pub fn third(&self, dialect: Dialect) -> String {
        inflect::third_person(self.base.of(dialect))
    }

    pub fn past(&self, dialect: Dialect) -> String {
        self.form(0, dialect, inflect::past)
    }

    pub fn participle(&self, dialect: Dialect) -> String {
        let spelt = self.irregular[1].of(dialect);
        if spelt.is_empty() { self.past(dialect) } else { spelt.to_owned() }
    }

    pub fn progressive(&self, dialect: Dialect) -> String {
        self.form(2, dialect, inflect::progressive)
    }

    fn form(&self, index: usize, dialect: Dialect, regular: fn(&str) -> String) -> String {
        let spelt = self.irregular[index].of(dialect);
        if spelt.is_empty() { regular(self.base.of(dialect)) } else { spelt.to_owned() }
    }
}

const REGULAR: [Spelling; 3] = [same(""), same(""), same("")];

const fn regular(base: &'static str, complement: Complement) -> Verb {
    Verb { base: same(base), irregular: REGULAR, complement, active: true }
}

/// A verb whose past, participle and (where not empty) progressive are spelt out.
const fn strong(
    base: &'static str,
    past: &'static str,
    participle: &'static str,
    progressive: &'static str,
    complement: Complement,
) -> Verb {
    Verb { base: same(base), irregular: [same(past), same(participle), same(progressive)], complement, active: true }
}

/// A verb of state or of a moment: no progressive.
const fn state(base: &'static str, past: &'static str, complement: Complement) -> Verb {
    Verb { base: same(base), irregular: [same(past), same(""), same("")], complement, active: false }
}

use Complement::{BarePlace, Mass, None, Object, Preposition, Receiver};
use NounClass::{Animal, Food, Garment, Person, Text, Thing, Vehicle};

pub const VERBS: &[Verb] = &[
    regular("walk", None),
    regular("work", None),
    regular("dance", None),
    regular("play", None),
    regular("smile", None),
    regular("rest", None),
    regular("shout", None),
    strong("run", "ran", "run", "running", None),
    strong("swim", "swam", "swum", "swimming", None),
    strong("sing", "sang", "sung", "", None),
    strong("sleep", "slept", "slept", "", None),
    strong("sit", "sat", "sat", "sitting", None),
    regular("open", Object(&[Thing])),
    regular("clean", Object(&[Thing, Vehicle])),
    regular("wash", Object(&[Garment, Vehicle])),
    regular("carry", Object(&[Thing, Animal])),
    regular("paint", Object(&[Thing, Animal, Vehicle])),
    regular("repair", Object(&[Thing, Vehicle])),
    regular("help", Object(&[Person])),
    regular("call", Object(&[Person])),
    regular("watch", Object(&[Animal])),
    regular("cook", Object(&[Food])),
    regular("use", Object(&[Thing, Vehicle])),
    regular("move", Object(&[Thing])),
    regular("photograph", Object(&[Person, Animal])),
    strong("buy", "bought", "bought", "", Object(&[Food, Text, Thing, Vehicle, Garment])),
    strong("sell", "sold", "sold", "", Object(&[Food, Thing, Vehicle, Garment])),
    strong("break", "broke", "broken", "", Object(&[Thing])),
    strong("choose", "chose", "chosen", "choosing", Object(&[Text, Thing, Garment])),
    strong("draw", "drew", "drawn", "", Object(&[Person, Animal, Thing])),
    strong("drive", "drove", "driven", "driving", Object(&[Vehicle])),
    strong("eat", "ate", "eaten", "", Object(&[Food])),
    strong("find", "found", "found", "", Object(&[Animal, Text, Thing, Garment])),
    strong("steal", "stole", "stolen", "", Object(&[Thing, Vehicle])),
    strong("hide", "hid", "hidden", "hiding", Object(&[Thing, Text])),
    strong("make", "made", "made", "making", Object(&[Food, Garment])),
    strong("ride", "rode", "ridden", "riding", Object(&[Animal])),
    strong("take", "took", "taken", "taking", Object(&[Thing, Food])),
    strong("teach", "taught", "taught", "", Object(&[Person])),
    strong("wear", "wore", "worn", "", Object(&[Garment])),
    strong("write", "wrote", "written", "writing", Object(&[Text])),
    strong("feed", "fed", "fed", "", Object(&[Animal])),
    state("see", "saw", Object(&[Person, Animal, Vehicle])).with_participle("seen"),
    state("forget", "forgot", Object(&[Thing, Text])).with_participle("forgotten"),
    state("lose", "lost", Object(&[Thing, Garment])),
    state("know", "knew", Object(&[Person])).with_participle("known"),
    state("like", "", Object(&[Food, Animal, Person])),
    state("need", "", Object(&[Thing, Vehicle])),
    strong("drink", "drank", "drunk", "", Mass(MassClass::Drink)),
    regular("order", Mass(MassClass::Food)),
    regular("share", Mass(MassClass::Food)),
    strong("bring", "brought", "brought", "", Mass(MassClass::Other)),
    state("want", "", Mass(MassClass::Drink)),
    regular("visit", BarePlace),
    regular("enter", BarePlace),
    strong("leave", "left", "left", "leaving", BarePlace),
    regular("wait", Preposition("for", &[Person, Vehicle])),
    regular("listen", Preposition("to", &[Person, Text])),
    regular("search", Preposition("for", &[Thing, Animal])),
    regular("laugh", Preposition("at", &[Person, Text])),
    regular("worry", Preposition("about", &[Person, Animal])),
    state("belong", "", Preposition("to", &[Person])),
    state("depend", "", Preposition("on", &[Person])),
    strong("pay", "paid", "paid", "", Preposition("for", &[Food, Vehicle, Garment])),
    strong("give", "gave", "given", "giving", Receiver(&[Food, Text, Thing])),
    strong("send", "sent", "sent", "", Receiver(&[Text, Thing])),
    strong("show", "", "shown", "", Receiver(&[Text, Thing, Garment])),
    strong("lend", "lent", "lent", "", Receiver(&[Text, Thing, Vehicle])),
];

impl Verb {
    const fn with_participle(mut self, participle: &'static str) -> Self {
        self.irregular[1] = same(participle);
        self
    }
}
