//! The part of SentencePiece's `ModelProto` that decides ids, read from its bytes.
//!
//! Protocol buffers by hand: a generated message would allocate a piece for every two bytes that a hostile file names;
//! here texts are borrowed from the file and pieces are counted. Field numbers are those of `sentencepiece_model.proto`.

use crate::error::{Error, Result};

/// Gemma's and mT5's, the largest in use, have a quarter of a million.
const MAX_PIECES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
    Word,
    Char,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// A piece that text is cut into: normal, unknown, unused or a byte.
    Text,
    Control,
    UserDefined,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Piece<'a> {
    pub text: &'a str,
    pub score: f32,
    pub kind: PieceKind,
}

#[derive(Debug)]
pub(super) struct Model<'a> {
    pub pieces: Vec<Piece<'a>>,
    pub algorithm: Algorithm,
    /// Whether characters outside the vocabulary become bytes.
    pub byte_fallback: bool,
    pub unk_id: usize,
    /// The compiled table of the text's normalisation; empty where there is none.
    pub charsmap: &'a [u8],
}

impl<'a> Model<'a> {
    /// # Errors
    /// The bytes are no such message; says in which field.
    pub fn parse(file: &str, bytes: &'a [u8]) -> Result<Self> {
        Self::read(bytes).map_err(|Broken { field, problem }| Error::tokenizer(file, &field, problem))
    }

    fn read(bytes: &'a [u8]) -> Result<Self, Broken> {
        let mut model =
            Self { pieces: Vec::new(), algorithm: Algorithm::Unigram, byte_fallback: false, unk_id: 0, charsmap: &[] };
        for field in Fields(bytes) {
            match field.map_err(|problem| broken("", problem))? {
                (1, Value::Bytes(piece)) => {
                    if model.pieces.len() == MAX_PIECES {
                        return Err(broken("pieces", format!("more than {MAX_PIECES}")));
                    }
                    model.pieces.push(read_piece(piece, model.pieces.len())?);
                }
                (2, Value::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        if let (2, Value::Bytes(charsmap)) =
                            field.map_err(|problem| broken("normalizer_spec", problem))?
                        {
                            model.charsmap = charsmap;
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(broken("pieces", "has none; this is no SentencePiece model"));
        }
        Ok(model)
    }

    fn read_trainer(&mut self, trainer: &[u8]) -> Result<(), Broken> {
        const FIELD: &str = "trainer_spec";
        for field in Fields(trainer) {
            match field.map_err(|problem| broken(FIELD, problem))? {
                (3, Value::Number(number)) => {
                    self.algorithm = match number {
                        1 => Algorithm::Unigram,
                        2 => Algorithm::Bpe,
                        3 => Algorithm::Word,
                        4 => Algorithm::Char,
                        other => return Err(broken(FIELD, format!("model_type {other} is not known"))),
                    }
                }
                (35, Value::Number(number)) => self.byte_fallback = number != 0,
                (40, Value::Number(number)) => {
                    self.unk_id =
                        usize::try_from(number).map_err(|_| broken(FIELD, format!("unk_id {number} is no piece")))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_piece(bytes: &[u8], index: usize) -> Result<Piece<'_>, Broken> {
    let wrong = |problem: &str| broken(format!("pieces[{index}]"), problem);
    let mut piece = Piece { text: "", score: 0.0, kind: PieceKind::Text };
    for field in Fields(bytes) {
        match field.map_err(wrong)? {
            (1, Value::Bytes(text)) => piece.text = std::str::from_utf8(text).map_err(|_| wrong("not UTF-8"))?,
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Number(3)) => piece.kind = PieceKind::Control,
            (3, Value::Number(4)) => piece.kind = PieceKind::UserDefined,
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err(wrong("has no text"));
    }
    if !piece.score.is_finite() {
        return Err(wrong("its score is not finite"));
    }
    Ok(piece)
}

/// What is wrong, and in which field.
struct Broken {
    field: String,
    problem: String,
}

fn broken(field: impl Into<String>, problem: impl Into<String>) -> Broken {
    Broken { field: field.into(), problem: problem.into() }
}

/// A field's value by its wire type.
enum Value<'a> {
    Number(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of one message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("breaks off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, &'static str> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("has a number of more than 64 bits; this is no SentencePiece model")
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), &'static str> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let length = usize::try_from(self.number()?).map_err(|_| "breaks off")?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            _ => return Err("has a field of no known type; this is no SentencePiece model"),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
