//! What an answer may be, token by token: a grammar, a schema, a pattern. The engine knows the shape of it only.

/// Belongs to one sequence; lives on the engine's thread.
pub trait Constraint: Send + std::fmt::Debug {
    /// Sets the logits of tokens that may not come next to minus infinity.
    ///
    /// # Errors
    /// Nothing may come next, or the constraint costs too much to follow.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// Takes the token that was chosen. False when the answer is complete with it.
    ///
    /// # Errors
    /// The token was not allowed.
    fn accept(&mut self, token: u32) -> Result<bool, String>;
}
