// What a layer makes at great cost, kept from the pass that gives its output for the one that makes its gradient's history
// (selective activation recomputation, arXiv 2205.05198 §5): what products and attention give, in the order in which they
// are made. The second pass takes each in its turn and makes everything else again.
#pragma once
#include "shim.h"

#include <ATen/ATen.h>

#include <deque>

namespace tailor {

struct Tape {
  std::deque<at::Tensor> kept;

  void keep(const at::Tensor& made);
  // The next one.
  at::Tensor take();
  // The next one, which must be of this size and type: a layer that does not run as it did before is told from one that does.
  at::Tensor take(at::IntArrayRef size, at::ScalarType type);
};

// The tape that this thread puts on, or takes from; null where it does not.
Tape* recorded_tape();
Tape* replayed_tape();

// What `make` gives, of this size and type: put on the tape, or taken from it and not made.
template <typename F>
at::Tensor taped(at::IntArrayRef size, at::ScalarType type, F&& make) {
  if (Tape* tape = replayed_tape()) return tape->take(size, type);
  at::Tensor made = make();
  if (Tape* tape = recorded_tape()) tape->keep(made);
  return made;
}

// As `taped`, of the type of `like`, for a value that the backward pass has no use for. Where it is not wanted
// (tailor_want_values) there are zeros in its place. A pass that records gives it all the same, since it is made for its
// values, and keeps it out of the tape.
template <typename F>
at::Tensor taped_value(at::IntArrayRef size, const at::Tensor& like, F&& make) {
  if (tailor_values_wanted() != 0) return taped(size, like.scalar_type(), make);
  return recorded_tape() != nullptr ? make() : at::zeros(size, like.options());
}

}  // namespace tailor
