// CUDA's execution model on a host, for kernels that are to be tested or debugged without a card: the kernels' own text
// compiles behind this.
//
// A block's threads are fibres of the calling thread; blocks run one after the other, so shared memory is static memory.
// A fibre runs until a barrier or a shuffle makes it wait. A barrier that not all threads reach ends the launch with an
// error, where a card would hang or go on with wrong values. One launch at a time.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

namespace host {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

constexpr unsigned WARP = 32, MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 128 * 1024;

enum class State { Ready, AtBlockBarrier, AtWarpBarrier, Done };

struct Fibre {
  ucontext_t context;
  State state = State::Done;
  unsigned shuffles = 0;
};

inline Dim grid, block, at_block, at_thread;
inline ucontext_t scheduler;
inline std::unique_ptr<Fibre[]> fibres;
inline std::unique_ptr<char[]> stacks;
// Two sets in turn: a fast lane may already write its next value while a slow one reads the last.
inline float exchanged[2][MAX_THREADS];
inline void (*body)(void* const*);
inline void* const* arguments;

inline void wait(State why) {
  Fibre& self = fibres[at_thread.x];
  const unsigned thread = at_thread.x;
  self.state = why;
  swapcontext(&self.context, &scheduler);
  at_thread.x = thread;
}

inline float shuffle_xor(float value, int mask) {
  const unsigned thread = at_thread.x;
  float* const values = exchanged[fibres[thread].shuffles++ % 2];
  values[thread] = value;
  wait(State::AtWarpBarrier);
  return values[thread ^ unsigned(mask)];
}

// What each lane brings to a product of its warp, in two sets in turn as above.
struct Fragment {
  unsigned a[4], b[2];
};
inline Fragment fragments[2][MAX_THREADS];

inline float half_of(unsigned pair, unsigned which) {
  const unsigned bits = which == 0 ? pair << 16 : pair & 0xffff0000u;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// mma.m16n8k16 of bf16 with sums in f32, element by element from its fragments' definition.
inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned thread = at_thread.x, warp = thread - thread % WARP, lane = thread % WARP;
  Fragment* const all = fragments[fibres[thread].shuffles++ % 2];
  all[thread] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  wait(State::AtWarpBarrier);
  for (unsigned j = 0; j < 4; ++j) {
    const unsigned row = lane / 4, upper = j / 2, column = lane % 4 * 2 + j % 2;
    float sum = 0.0f;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned t = k % 8 / 2, high = k / 8;
      const Fragment &of_a = all[warp + row * 4 + t], &of_b = all[warp + column * 4 + t];
      sum += half_of(of_a.a[high * 2 + upper], k % 2) * half_of(of_b.b[high], k % 2);
    }
    c[j] += sum;
  }
}

inline void entry() {
  body(arguments);
  fibres[at_thread.x].state = State::Done;
  swapcontext(&fibres[at_thread.x].context, &scheduler);
}

// Makes threads of a range that all wait for the same thing ready again. False where some wait and others never will.
inline bool release(unsigned from, unsigned to, State why, bool& released) {
  unsigned waiting = 0, done = 0;
  for (unsigned i = from; i < to; ++i) {
    waiting += fibres[i].state == why;
    done += fibres[i].state == State::Done;
  }
  if (waiting == to - from) {
    for (unsigned i = from; i < to; ++i) fibres[i].state = State::Ready;
    released = true;
  }
  return waiting == 0 || done == 0;
}

// One block to its end; null, or what is wrong with it.
inline const char* run_block() {
  for (unsigned i = 0; i < block.x; ++i) {
    Fibre& fibre = fibres[i];
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = stacks.get() + size_t(i) * STACK_BYTES;
    fibre.context.uc_stack.ss_size = STACK_BYTES;
    fibre.context.uc_link = nullptr;
    fibre.state = State::Ready;
    fibre.shuffles = 0;
    makecontext(&fibre.context, entry, 0);
  }
  for (;;) {
    unsigned done = 0;
    for (unsigned i = 0; i < block.x; ++i) {
      if (fibres[i].state == State::Ready) {
        at_thread.x = i;
        swapcontext(&scheduler, &fibres[i].context);
      }
      done += fibres[i].state == State::Done;
    }
    if (done == block.x) return nullptr;
    bool released = false;
    for (unsigned warp = 0; warp < block.x; warp += WARP) {
      const unsigned end = warp + WARP < block.x ? warp + WARP : block.x;
      if (!release(warp, end, State::AtWarpBarrier, released)) return "a shuffle that not all lanes of a warp reach";
    }
    if (!release(0, block.x, State::AtBlockBarrier, released)) return "a barrier that not all threads of a block reach";
    if (!released) return "threads that wait for different barriers";
  }
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void* const* values, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<A>*>(values[I])...);
}

template <class... A>
void call(void (*kernel)(A...), void* const* values) {
  call(kernel, values, std::index_sequence_for<A...>{});
}

template <class... A>
constexpr unsigned count(void (*)(A...)) {
  return sizeof...(A);
}

struct Kernel {
  const char* name;
  void (*body)(void* const*);
  unsigned arguments;
};

inline int32_t launch(const Kernel* kernels, size_t known, const char* name, unsigned blocks, unsigned threads,
                      void* const* values, unsigned given, char* message, size_t room) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  const Kernel* found = nullptr;
  for (size_t i = 0; i < known; ++i) {
    if (std::strcmp(kernels[i].name, name) == 0) found = &kernels[i];
  }
  if (found == nullptr) return std::snprintf(message, room, "there is no kernel %s", name), 1;
  if (found->arguments != given) {
    return std::snprintf(message, room, "%s takes %u arguments, not %u", name, found->arguments, given), 1;
  }
  if (threads == 0 || threads > MAX_THREADS || blocks == 0) {
    return std::snprintf(message, room, "%s: %u blocks of %u threads", name, blocks, threads), 1;
  }
  if (!fibres) {
    fibres.reset(new Fibre[MAX_THREADS]);
    stacks.reset(new char[MAX_THREADS * STACK_BYTES]);
  }
  grid.x = blocks;
  block.x = threads;
  body = found->body;
  arguments = values;
  for (at_block.x = 0; at_block.x < blocks; ++at_block.x) {
    if (const char* wrong = run_block()) return std::snprintf(message, room, "%s has %s", name, wrong), 1;
  }
  return 0;
}

}  // namespace host

#define gridDim host::grid
#define blockDim host::block
#define blockIdx host::at_block
#define threadIdx host::at_thread

inline void __syncthreads() { host::wait(host::State::AtBlockBarrier); }
inline float __shfl_xor_sync(unsigned, float value, int mask) { return host::shuffle_xor(value, mask); }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
#define TAILOR_KERNEL(NAME) {#NAME, [](void* const* values) { host::call(NAME, values); }, host::count(NAME)}
