// softmax(q·kᵀ·scale + mask)·v in bf16, block by block (FlashAttention-2, arXiv 2307.08691 §3.1, algorithm 1). libtorch's own
// kernel goes by block products where there are tiles, and else by a general product of f32. A group's query heads read their
// keys and values as they lie: nothing is repeated.
//
// Queries in f32 beside keys and values in bf16 (`Fine`) are products of bf16 too, of what a value is rounded to and of what is
// left over, so that 16 significant bits of it count; so are the weights. The output is f32.

#include "attention.h"
#include "attention_blocks.h"
#include "attention_rows.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

namespace tailor {
// Of its own, since the pass back has blocks and rooms too, in one unit of compilation.
namespace forward_pass {
namespace {

using at::Tensor;

// Queries of a block, and keys whose scores are kept at a time.
constexpr int64_t kQueries = 64, kKeys = 1024;

// A value as bf16, and what that leaves over.
TAILOR_INLINE void split(float value, Bits* high, Bits* low) {
  store(high, value);
  store(low, value - load(high));
}

// e^(score − most) as bf16, and what that leaves over unless `low` is null; gives their sum before that.
template <bool kFine>
TAILOR_INLINE float weigh(const float* scores, float most, Bits* high, Bits* low, int64_t count) {
  float lanes[kLanes] = {};
  const auto one = [&](int64_t j, int64_t l) {
    const float weight = exp_of(scores[j] - most);
    if constexpr (kFine) {
      split(weight, high + j, low + j);
    } else {
      store(high + j, weight);
    }
    lanes[l] += weight;
  };
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) one(j + l, l);
  }
  for (int64_t l = 0; j + l < count; ++l) one(j + l, l);
  return sum_of(lanes);
}
TAILOR_VECTORS float weigh_coarse(const float* scores, float most, Bits* high, Bits* low, int64_t count) {
  return weigh<false>(scores, most, high, low, count);
}
TAILOR_VECTORS float weigh_fine(const float* scores, float most, Bits* high, Bits* low, int64_t count) {
  return weigh<true>(scores, most, high, low, count);
}

TAILOR_VECTORS void narrow(const float* from, float factor, Bits* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) store(to + j, from[j] * factor);
}

TAILOR_VECTORS void halve(const float* from, Bits* high, Bits* low, int64_t count) {
  for (int64_t j = 0; j < count; ++j) split(from[j], high + j, low + j);
}

// What differs between queries in bf16 and in f32.
struct Coarse {
  using Value = Bits;
  static constexpr bool kFine = false;
  static void put(const float* sums, float factor, Value* out, int64_t count) { narrow(sums, factor, out, count); }
  static float weigh(const float* scores, float most, Bits* high, Bits* low, int64_t count) {
    return weigh_coarse(scores, most, high, low, count);
  }
};

struct Fine {
  using Value = float;
  static constexpr bool kFine = true;
  static void put(const float* sums, float factor, Value* out, int64_t count) {
    for (int64_t j = 0; j < count; ++j) out[j] = sums[j] * factor;
  }
  static float weigh(const float* scores, float most, Bits* high, Bits* low, int64_t count) {
    return weigh_fine(scores, most, high, low, count);
  }
};

// One thread's room: a head's keys and values as right sides, a block of queries that is not whole or is taken apart, and what
// is made of a block.
struct Room {
  int64_t width, keys;  // padded
  std::vector<Bits> k_turned, v, q, q_low, weights, low;
  std::vector<float> scores, sums;
  const Bits *placed = nullptr, *placed_v = nullptr;  // the keys and values that are there

  Room(int64_t width, int64_t all_keys, bool fine)
      : width(width), keys(whole(all_keys, kPanel)), k_turned(keys * width), v(keys * width), q(kQueries * width),
        q_low(fine ? kQueries * width : 0), weights(kQueries * kKeys), low(fine ? kQueries * kKeys : 0),
        scores(kQueries * kKeys), sums(kQueries * width) {}

  void take(const Rows& k, const Rows& v) {
    if (placed == k.at && placed_v == v.at) return;
    placed = k.at;
    placed_v = v.at;
    place_turned(k, keys, k_turned.data());
    place(v, keys, this->v.data());
  }
};

// Some rows of a head's queries, which lie `stride` apart.
template <typename Value>
struct Queries {
  const Value* at;
  int64_t stride, count;
};

// A block of queries with rows of whatever behind the last: block products are compiled for each number of rows, and lengths
// differ from batch to batch.
std::pair<const Bits*, int64_t> whole_block(const Queries<Bits>& q, Room& room) {
  if (q.count == kQueries) return {q.at, q.stride};
  for (int64_t i = 0; i < q.count; ++i) std::copy_n(q.at + i * q.stride, room.width, &room.q[i * room.width]);
  return {room.q.data(), room.width};
}

std::pair<const Bits*, int64_t> whole_block(const Queries<float>& q, Room& room) {
  for (int64_t i = 0; i < q.count; ++i) {
    halve(q.at + i * q.stride, &room.q[i * room.width], &room.q_low[i * room.width], room.width);
  }
  return {room.q.data(), room.width};
}

// A head: its rows, the mask [T, S] or null, and where its output goes.
template <typename Kind>
struct Head {
  Queries<typename Kind::Value> q;
  int64_t keys;
  const float* mask;
  bool causal;
  float scale;
  typename Kind::Value* out;
  int64_t out_stride;
  float* log_sums;
};

// The queries from `first` on, a block of them.
template <typename Kind>
void block(const Head<Kind>& head, Room& room, int64_t first) {
  const Queries<typename Kind::Value> q{head.q.at + first * head.q.stride, head.q.stride,
                                        std::min(kQueries, head.q.count - first)};
  const int64_t width = room.width;
  const auto [queries, stride] = whole_block(q, room);
  float most[kQueries], sums[kQueries] = {};
  std::fill_n(most, q.count, kNone);
  const int64_t end = head.causal ? std::min(head.keys, first + q.count) : head.keys;
  for (int64_t key = 0; key < end; key += kKeys) {
    const int64_t count = std::min(kKeys, end - key), padded = whole(count, kPanel);
    for (int64_t j = 0; j < padded; j += kPanel) {
      const Bits* panel = &room.k_turned[(key + j) * width];
      multiply(kQueries, kPanel, width, queries, stride, panel, &room.scores[j], kKeys, false);
      if (Kind::kFine) multiply(kQueries, kPanel, width, room.q_low.data(), width, panel, &room.scores[j], kKeys, true);
    }
    for (int64_t i = 0; i < q.count; ++i) {
      float* scores = &room.scores[i * kKeys];
      Bits* weights = &room.weights[i * kKeys];
      Bits* low = Kind::kFine ? &room.low[i * kKeys] : nullptr;
      const int64_t seen = head.causal ? std::clamp<int64_t>(first + i + 1 - key, 0, count) : count;
      const float* mask = head.mask == nullptr ? nullptr : head.mask + (first + i) * head.keys + key;
      const float largest = std::max(most[i], scaled(scores, mask, head.scale, seen));
      // Of a query that sees nothing so far nothing is added up.
      const bool sees = largest != kNone;
      const float factor = sees ? exp_of(most[i] - largest) : 1.0f;
      if (sees) sums[i] = sums[i] * factor + Kind::weigh(scores, largest, weights, low, seen);
      const int64_t weighed = sees ? seen : 0;
      std::fill(weights + weighed, weights + padded, 0);
      if (Kind::kFine) std::fill(low + weighed, low + padded, 0);
      if (key > 0 && factor != 1.0f) multiply_by(&room.sums[i * width], factor, width);
      most[i] = largest;
    }
    for (int64_t column = 0; column < width; column += kPanel) {
      const int64_t columns = std::min(kPanel, width - column);
      const Bits* panel = &room.v[column * room.keys + key * columns];
      float* to = &room.sums[column];
      multiply(kQueries, columns, padded, room.weights.data(), kKeys, panel, to, width, key > 0);
      if (Kind::kFine) multiply(kQueries, columns, padded, room.low.data(), kKeys, panel, to, width, true);
    }
  }
  for (int64_t i = 0; i < q.count; ++i) {
    // One that sees nothing has an output of zeros, and gives no gradient.
    const bool sees = most[i] != kNone;
    Kind::put(&room.sums[i * width], sees ? 1.0f / sums[i] : 0.0f, head.out + (first + i) * head.out_stride, width);
    head.log_sums[first + i] = sees ? most[i] + std::log(sums[i]) : 0.0f;
  }
}

template <typename Kind>
std::pair<Tensor, Tensor> forward(const Tensor& queries, const Tensor& keys, const Tensor& values,
                                  const std::optional<Tensor>& mask, bool causal, double scale) {
  using Value = typename Kind::Value;
  const Tensor q = beside(queries), k = beside(keys), v = beside(values);
  const int64_t batch = q.size(0), heads = q.size(1), count = q.size(2), width = q.size(3);
  const int64_t groups = heads / k.size(1);
  TORCH_CHECK(v.size(3) == width, "keys and values of one width are needed, not ", width, " and ", v.size(3));
  TORCH_CHECK(k.size(2) > 0, "attention over no key");
  Tensor seen;  // [1 or B, 1 or H, T, S]
  if (mask) seen = mask->to(at::kFloat).expand({-1, -1, count, k.size(2)}).contiguous();
  const Tensor out = heads_inside(q.sizes(), q), log_sums = at::empty({batch, heads, count}, q.options().dtype(at::kFloat));
  at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    Room room(width, k.size(2), Kind::kFine);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / heads, h = i % heads;
      const float* own = nullptr;
      if (seen.defined()) {
        const int64_t from_batch = seen.size(0) == 1 ? 0 : b, from_head = seen.size(1) == 1 ? 0 : h;
        own = data_of<float>(seen) + from_batch * seen.stride(0) + from_head * seen.stride(1);
      }
      room.take(rows_of(k, b, h / groups), rows_of(v, b, h / groups));
      const Value* rows = data_of<Value>(q) + b * q.stride(0) + h * q.stride(1);
      const Head<Kind> head{{rows, q.stride(2), count}, k.size(2), own, causal, static_cast<float>(scale),
                            data_of<Value>(out) + b * out.stride(0) + h * out.stride(1), out.stride(2),
                            data_of<float>(log_sums) + i * count};
      for (int64_t first = 0; first < count; first += kQueries) block<Kind>(head, room, first);
    }
    at::native::cpublas::brgemm_release();
  });
  return {out, log_sums};
}

}  // namespace
}  // namespace forward_pass

std::pair<at::Tensor, at::Tensor> attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                    const std::optional<at::Tensor>& mask, bool causal, double scale) {
  return forward_pass::forward<forward_pass::Coarse>(q, k, v, mask, causal, scale);
}

at::Tensor attention_fine(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const std::optional<at::Tensor>& mask, bool causal, double scale) {
  return forward_pass::forward<forward_pass::Fine>(q, k, v, mask, causal, scale).first;
}

}  // namespace tailor
