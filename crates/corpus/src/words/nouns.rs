//! Countable nouns by class, mass nouns, places and professions.

use super::{Spelling, inflect, pair, same};

/// What a verb asks of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NounClass {
    Person,
    Animal,
    Food,
    Text,
    Thing,
    Vehicle,
    Garment,
}

/// A countable noun.
#[derive(Clone, Copy, Debug)]
pub struct Noun {
    singular: Spelling,
    /// Empty where the regular rule holds.
    plural: &'static str,
    pub class: NounClass,
}

impl Noun {
    pub fn singular(&self, dialect: super::Dialect) -> String {
        self.singular.of(dialect).to_owned()
    }

    pub fn plural(&self, dialect: super::Dialect) -> String {
        if self.plural.is_empty() { inflect::plural(self.singular.of(dialect)) } else { self.plural.to_owned() }
    }
}

/// A noun without a plural, and the class of verbs that it is the object of.
#[derive(Clone, Copy, Debug)]
pub struct Mass {
    pub word: &'static str,
    pub class: MassClass,
}

/// What a verb does with a mass noun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MassClass {
    Drink,
    Food,
    Other,
}

/// Where something happens: `at the station`.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub preposition: &'static str,
    noun: Spelling,
}

impl Place {
    pub fn noun(&self, dialect: super::Dialect) -> &'static str {
        self.noun.of(dialect)
    }
}

const fn noun(word: &'static str, class: NounClass) -> Noun {
    Noun { singular: same(word), plural: "", class }
}

const fn irregular(word: &'static str, plural: &'static str, class: NounClass) -> Noun {
    Noun { singular: same(word), plural, class }
}

const fn dialectal(us: &'static str, gb: &'static str, class: NounClass) -> Noun {
    Noun { singular: pair(us, gb), plural: "", class }
}

use NounClass::{Animal, Food, Garment, Person, Text, Thing, Vehicle};

pub const NOUNS: &[Noun] = &[
    noun("boy", Person),
    noun("girl", Person),
    irregular("man", "men", Person),
    irregular("woman", "women", Person),
    irregular("child", "children", Person),
    noun("teacher", Person),
    noun("student", Person),
    noun("doctor", Person),
    noun("nurse", Person),
    noun("farmer", Person),
    noun("artist", Person),
    noun("engineer", Person),
    noun("actor", Person),
    noun("uncle", Person),
    noun("aunt", Person),
    noun("sister", Person),
    noun("brother", Person),
    noun("friend", Person),
    noun("guest", Person),
    noun("lawyer", Person),
    noun("tourist", Person),
    noun("baker", Person),
    noun("driver", Person),
    dialectal("neighbor", "neighbour", Person),
    noun("dog", Animal),
    noun("cat", Animal),
    noun("horse", Animal),
    noun("bird", Animal),
    irregular("mouse", "mice", Animal),
    irregular("goose", "geese", Animal),
    noun("elephant", Animal),
    noun("rabbit", Animal),
    noun("apple", Food),
    noun("orange", Food),
    noun("egg", Food),
    noun("cake", Food),
    noun("sandwich", Food),
    irregular("tomato", "tomatoes", Food),
    irregular("potato", "potatoes", Food),
    dialectal("cookie", "biscuit", Food),
    noun("onion", Food),
    noun("pear", Food),
    noun("book", Text),
    noun("letter", Text),
    noun("story", Text),
    noun("poem", Text),
    noun("email", Text),
    noun("report", Text),
    noun("article", Text),
    noun("essay", Text),
    noun("box", Thing),
    noun("chair", Thing),
    noun("table", Thing),
    noun("lamp", Thing),
    noun("window", Thing),
    noun("door", Thing),
    noun("cup", Thing),
    noun("plate", Thing),
    irregular("knife", "knives", Thing),
    irregular("shelf", "shelves", Thing),
    noun("key", Thing),
    noun("ticket", Thing),
    noun("umbrella", Thing),
    noun("clock", Thing),
    noun("picture", Thing),
    noun("ball", Thing),
    noun("toy", Thing),
    noun("bag", Thing),
    noun("camera", Thing),
    noun("phone", Thing),
    noun("guitar", Thing),
    noun("piano", Thing),
    dialectal("flashlight", "torch", Thing),
    noun("car", Vehicle),
    noun("bus", Vehicle),
    noun("boat", Vehicle),
    noun("bicycle", Vehicle),
    dialectal("truck", "lorry", Vehicle),
    noun("hat", Garment),
    noun("coat", Garment),
    noun("shirt", Garment),
    noun("dress", Garment),
    noun("uniform", Garment),
    irregular("scarf", "scarves", Garment),
    noun("shoe", Garment),
];

pub const MASS: &[Mass] = &[
    Mass { word: "water", class: MassClass::Drink },
    Mass { word: "milk", class: MassClass::Drink },
    Mass { word: "tea", class: MassClass::Drink },
    Mass { word: "coffee", class: MassClass::Drink },
    Mass { word: "juice", class: MassClass::Drink },
    Mass { word: "bread", class: MassClass::Food },
    Mass { word: "rice", class: MassClass::Food },
    Mass { word: "cheese", class: MassClass::Food },
    Mass { word: "soup", class: MassClass::Food },
    Mass { word: "fruit", class: MassClass::Food },
    Mass { word: "money", class: MassClass::Other },
    Mass { word: "furniture", class: MassClass::Other },
    Mass { word: "luggage", class: MassClass::Other },
    Mass { word: "equipment", class: MassClass::Other },
];

const fn at(preposition: &'static str, word: &'static str) -> Place {
    Place { preposition, noun: same(word) }
}

pub const PLACES: &[Place] = &[
    at("in", "garden"),
    at("in", "park"),
    at("in", "kitchen"),
    at("in", "library"),
    at("in", "museum"),
    at("in", "city"),
    at("in", "village"),
    at("in", "office"),
    at("in", "hospital"),
    at("at", "station"),
    at("at", "airport"),
    at("at", "university"),
    at("at", "market"),
    at("on", "beach"),
    at("on", "farm"),
    at("on", "island"),
    Place { preposition: "in", noun: pair("theater", "theatre") },
    Place { preposition: "in", noun: pair("apartment", "flat") },
    Place { preposition: "in", noun: pair("yard", "courtyard") },
];

/// Professions that stand after `is a`.
pub const TITLES: &[&str] =
    &["teacher", "student", "doctor", "nurse", "farmer", "artist", "engineer", "actor", "lawyer", "baker", "driver"];
