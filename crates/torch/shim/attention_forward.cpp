// softmax(q·kᵀ·scale + mask)·v in bf16, block by block (FlashAttention-2, arXiv 2307.08691 §3.1, algorithm 1). libtorch's own
// kernel goes by block products where there are tiles, and else by a general product of f32. A group's query heads read their
// keys and values as they lie: nothing is repeated.

#include "attention.h"
#include "attention_blocks.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <vector>

namespace tailor {
// Of its own, since the pass back has blocks and rooms too, in one unit of compilation.
namespace forward_pass {
namespace {

using at::Tensor;

// Queries of a block, and keys whose scores are kept at a time.
constexpr int64_t kQueries = 64, kKeys = 1024;
constexpr float kNone = -std::numeric_limits<float>::infinity();

// Scales a row's scores, adds the mask (which may be null), and gives the largest.
TAILOR_VECTORS float scaled(float* scores, const float* mask, float scale, int64_t count) {
  float lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = kNone;
  const auto one = [&](int64_t j, int64_t l) {
    const float score = mask == nullptr ? scores[j] * scale : scores[j] * scale + mask[j];
    scores[j] = score;
    lanes[l] = score > lanes[l] ? score : lanes[l];
  };
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) one(j + l, l);
  }
  for (int64_t l = 0; j + l < count; ++l) one(j + l, l);
  float most = kNone;
  for (int64_t l = 0; l < kLanes; ++l) most = lanes[l] > most ? lanes[l] : most;
  return most;
}

// e^(score − most), rounded to bf16; gives their sum before that.
TAILOR_VECTORS float weigh(const float* scores, float most, Bits* weights, int64_t count) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const float weight = exp_of(scores[j + l] - most);
      store(weights + j + l, weight);
      lanes[l] += weight;
    }
  }
  for (int64_t l = 0; j + l < count; ++l) {
    const float weight = exp_of(scores[j + l] - most);
    store(weights + j + l, weight);
    lanes[l] += weight;
  }
  return sum_of(lanes);
}

TAILOR_VECTORS void multiply_by(float* row, float factor, int64_t count) {
  for (int64_t j = 0; j < count; ++j) row[j] *= factor;
}

TAILOR_VECTORS void narrow(const float* from, float factor, Bits* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) store(to + j, from[j] * factor);
}

// One thread's room: a head's keys and values as right sides, a block of queries that is not whole, and what is made of a block.
struct Room {
  int64_t width, keys;  // padded
  std::vector<Bits> k_turned, v, q, weights;
  std::vector<float> scores, sums;

  Room(int64_t width, int64_t all_keys)
      : width(width), keys(whole(all_keys, kPanel)), k_turned(keys * width), v(keys * width), q(kQueries * width),
        weights(kQueries * kKeys), scores(kQueries * kKeys), sums(kQueries * width) {}
};

// A block of queries with rows of whatever behind the last: block products are compiled for each number of rows, and lengths
// differ from batch to batch.
std::pair<const Bits*, int64_t> whole_block(const Rows& q, Room& room) {
  if (q.count == kQueries) return {q.at, q.stride};
  for (int64_t i = 0; i < q.count; ++i) std::copy_n(q.row(i), q.width, &room.q[i * q.width]);
  return {room.q.data(), q.width};
}

// A head: its rows, the mask [T, S] or null, and where its output goes.
struct Head {
  Rows q, k, v;
  const float* mask;
  bool causal;
  float scale;
  Bits* out;
  int64_t out_stride;
  float* log_sums;
};

// The queries from `first` on, a block of them.
void block(const Head& head, Room& room, int64_t first) {
  const Rows q = head.q.from(first, kQueries);
  const int64_t width = room.width;
  const auto [queries, stride] = whole_block(q, room);
  float most[kQueries], sums[kQueries] = {};
  std::fill_n(most, q.count, kNone);
  const int64_t end = head.causal ? std::min(head.k.count, first + q.count) : head.k.count;
  for (int64_t key = 0; key < end; key += kKeys) {
    const int64_t count = std::min(kKeys, end - key), padded = whole(count, kPanel);
    for (int64_t j = 0; j < padded; j += kPanel) {
      multiply(kQueries, kPanel, width, queries, stride, &room.k_turned[(key + j) * width], &room.scores[j], kKeys, false);
    }
    for (int64_t i = 0; i < q.count; ++i) {
      float* scores = &room.scores[i * kKeys];
      Bits* weights = &room.weights[i * kKeys];
      const int64_t seen = head.causal ? std::clamp<int64_t>(first + i + 1 - key, 0, count) : count;
      const float* mask = head.mask == nullptr ? nullptr : head.mask + (first + i) * head.k.count + key;
      const float largest = std::max(most[i], scaled(scores, mask, head.scale, seen));
      // Of a query that sees nothing so far nothing is added up.
      const bool sees = largest != kNone;
      const float factor = sees ? exp_of(most[i] - largest) : 1.0f;
      if (sees) {
        sums[i] = sums[i] * factor + weigh(scores, largest, weights, seen);
      } else {
        std::fill_n(weights, seen, 0);
      }
      std::fill(weights + seen, weights + padded, 0);
      if (key > 0 && factor != 1.0f) multiply_by(&room.sums[i * width], factor, width);
      most[i] = largest;
    }
    for (int64_t column = 0; column < width; column += kPanel) {
      const int64_t columns = std::min(kPanel, width - column);
      multiply(kQueries, columns, padded, room.weights.data(), kKeys, &room.v[column * room.keys + key * columns],
               &room.sums[column], width, key > 0);
    }
  }
  for (int64_t i = 0; i < q.count; ++i) {
    // One that sees nothing has an output of zeros, and gives no gradient.
    const bool sees = most[i] != kNone;
    narrow(&room.sums[i * width], sees ? 1.0f / sums[i] : 0.0f, head.out + (first + i) * head.out_stride, width);
    head.log_sums[first + i] = sees ? most[i] + std::log(sums[i]) : 0.0f;
  }
}

}  // namespace
}  // namespace forward_pass

std::pair<at::Tensor, at::Tensor> attention_forward(const at::Tensor& queries, const at::Tensor& keys,
                                                    const at::Tensor& values, const std::optional<at::Tensor>& mask,
                                                    bool causal, double scale) {
  using at::Tensor;
  using namespace forward_pass;
  const Tensor q = beside(queries), k = beside(keys), v = beside(values);
  const int64_t batch = q.size(0), heads = q.size(1), count = q.size(2), width = q.size(3);
  const int64_t groups = heads / k.size(1);
  TORCH_CHECK(v.size(3) == width, "keys and values of one width are needed, not ", width, " and ", v.size(3));
  TORCH_CHECK(k.size(2) > 0, "attention over no key");
  Tensor seen;  // [1 or B, 1 or H, T, S]
  if (mask) seen = mask->to(at::kFloat).expand({-1, -1, count, k.size(2)}).contiguous();
  const Tensor out = heads_inside(q.sizes(), q), log_sums = at::empty({batch, heads, count}, q.options().dtype(at::kFloat));
  at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    Room room(width, k.size(2));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / heads, h = i % heads;
      const float* own = nullptr;
      if (seen.defined()) {
        const int64_t from_batch = seen.size(0) == 1 ? 0 : b, from_head = seen.size(1) == 1 ? 0 : h;
        own = data_of<float>(seen) + from_batch * seen.stride(0) + from_head * seen.stride(1);
      }
      const Head head{rows_of(q, b, h), rows_of(k, b, h / groups), rows_of(v, b, h / groups), own, causal,
                      static_cast<float>(scale), data_of<Bits>(out) + b * out.stride(0) + h * out.stride(1),
                      out.stride(2), data_of<float>(log_sums) + i * count};
      place_turned(head.k, room.keys, room.k_turned.data());
      place(head.v, room.keys, room.v.data());
      for (int64_t first = 0; first < count; first += kQueries) block(head, room, first);
    }
    at::native::cpublas::brgemm_release();
  });
  return {out, log_sums};
}

}  // namespace tailor
