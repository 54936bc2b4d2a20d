// Which tape a thread uses, and how: see tape.h.

#include "tape.h"

#include "support.h"

namespace tailor {
namespace {

struct TapeInUse {
  Tape* tape = nullptr;
  bool replay = false;
};

thread_local TapeInUse tape_in_use;

}  // namespace

void Tape::keep(const at::Tensor& made) {
  // A tensor of its own over the same memory: what autograd hangs on the other is not hung on this one.
  kept.push_back(made.defined() ? made.variable_data() : made);
}

at::Tensor Tape::take() {
  TORCH_CHECK(!kept.empty(), "a layer that runs again asks for more than it has kept");
  at::Tensor next = std::move(kept.front());
  kept.pop_front();
  return next;
}

at::Tensor Tape::take(at::IntArrayRef size, at::ScalarType type) {
  at::Tensor next = take();
  TORCH_CHECK(next.defined() && next.sizes() == size && next.scalar_type() == type, "a layer that runs again asks for ",
              size, " in ", type, " where it has kept ", next.sizes(), " in ", next.scalar_type());
  return next;
}

Tape* recorded_tape() { return tape_in_use.replay ? nullptr : tape_in_use.tape; }
Tape* replayed_tape() { return tape_in_use.replay ? tape_in_use.tape : nullptr; }

}  // namespace tailor

using namespace tailor;

extern "C" {

int32_t tailor_tape_new(void** tape) {
  return guarded([&] { *tape = new Tape; });
}

void tailor_tape_free(void* tape) { delete static_cast<Tape*>(tape); }

int32_t tailor_tape_enter(void* tape, bool replay) {
  return guarded([&] {
    TORCH_CHECK(tape_in_use.tape == nullptr, "another tape is in use on this thread");
    tape_in_use = {static_cast<Tape*>(tape), replay};
  });
}

void tailor_tape_leave() { tape_in_use = {}; }

bool tailor_tape_in_use() { return tape_in_use.tape != nullptr; }

size_t tailor_tape_length(const void* tape) { return static_cast<const Tape*>(tape)->kept.size(); }
}
