// softmax(q·kᵀ·scale + mask)·v and its gradients with products of f32, for processors without block products of bf16: block by block
// (FlashAttention-2, arXiv 2307.08691 §3.1, algorithms 1 and 2). libtorch's own kernel makes the products of all keys of a block of
// 512, also of those that causal queries do not see, and wants keys and values once for each query head.

#include "attention.h"
#include "attention_rows.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace tailor {
namespace wide {
namespace {

using at::Tensor;

// Queries of a block, and keys whose scores are made at a time.
constexpr int64_t kQueries = 64, kKeys = 512;

// BLAS, column by column, of the library that libtorch has in it.
using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                       const int*, const float*, const int*, const float*, float*, const int*);

Sgemm sgemm() {
  static const auto found = reinterpret_cast<Sgemm>(dlsym(RTLD_DEFAULT, "sgemm_"));
  return found;
}

// A matrix row by row, or what it is turned.
struct Matrix {
  const float* at;
  int64_t stride;
  bool turned = false;
};

// C [m, n] = or += A [m, k]·B [k, n]. Columns of BLAS are rows here, so that it makes Cᵀ = Bᵀ·Aᵀ.
void multiply(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, float* c, int64_t c_stride, bool add) {
  const auto flag = [](const Matrix& x) { return x.turned ? "T" : "N"; };
  const std::array<int, 6> s = {static_cast<int>(n),        static_cast<int>(m),        static_cast<int>(k),
                                static_cast<int>(b.stride), static_cast<int>(a.stride), static_cast<int>(c_stride)};
  const float one = 1.0f, before = add ? 1.0f : 0.0f;
  sgemm()(flag(b), flag(a), &s[0], &s[1], &s[2], &one, b.at, &s[3], a.at, &s[4], &before, c, &s[5]);
}

TAILOR_VECTORS void copy_f32(const float* from, float* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) to[j] = from[j];
}
TAILOR_VECTORS void copy_bf16(const uint16_t* from, float* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) to[j] = load(from + j);
}
void copy(const float* from, float* to, int64_t count) { copy_f32(from, to, count); }
void copy(const uint16_t* from, float* to, int64_t count) { copy_bf16(from, to, count); }

TAILOR_VECTORS void put_f32(const float* from, float factor, float* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) to[j] = from[j] * factor;
}
TAILOR_VECTORS void put_bf16(const float* from, float factor, uint16_t* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) store(to + j, from[j] * factor);
}
void put(const float* from, float factor, float* to, int64_t count) { put_f32(from, factor, to, count); }
void put(const float* from, float factor, uint16_t* to, int64_t count) { put_bf16(from, factor, to, count); }

// Scores become e^(score − most); gives their sum.
TAILOR_VECTORS float weigh(float* scores, float most, int64_t count) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const float weight = exp_of(scores[j + l] - most);
      scores[j + l] = weight;
      lanes[l] += weight;
    }
  }
  for (int64_t l = 0; j + l < count; ++l) {
    const float weight = exp_of(scores[j + l] - most);
    scores[j + l] = weight;
    lanes[l] += weight;
  }
  return sum_of(lanes);
}

// A query's scores become weights, and the weights' gradients those of the scores.
TAILOR_VECTORS void weigh_back(float* scores, float* gradients, const float* mask, float log_sum, float delta, float scale,
                               int64_t count) {
  if (mask == nullptr) {
    for (int64_t j = 0; j < count; ++j) {
      const float weight = exp_of(scores[j] * scale - log_sum);
      scores[j] = weight;
      gradients[j] = weight * (gradients[j] - delta) * scale;
    }
  } else {
    for (int64_t j = 0; j < count; ++j) {
      const float weight = exp_of(scores[j] * scale + mask[j] - log_sum);
      scores[j] = weight;
      gradients[j] = weight * (gradients[j] - delta) * scale;
    }
  }
}

TAILOR_VECTORS float dot_of(const float* a, const float* b, int64_t count) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += a[j + l] * b[j + l];
  }
  for (int64_t l = 0; j + l < count; ++l) lanes[l] += a[j + l] * b[j + l];
  return sum_of(lanes);
}

// Rows of one head in f32, side by side.
template <typename T>
void read(const Tensor& x, int64_t batch, int64_t head, std::vector<float>& to) {
  const T* rows = data_of<T>(x) + batch * x.stride(0) + head * x.stride(1);
  const int64_t count = x.size(2), width = x.size(3);
  to.resize(count * width);
  for (int64_t i = 0; i < count; ++i) copy(rows + i * x.stride(2), &to[i * width], width);
}

template <typename T>
void write(const std::vector<float>& from, const Tensor& x, int64_t batch, int64_t head) {
  T* rows = data_of<T>(x) + batch * x.stride(0) + head * x.stride(1);
  const int64_t count = x.size(2), width = x.size(3);
  for (int64_t i = 0; i < count; ++i) put(&from[i * width], 1.0f, rows + i * x.stride(2), width);
}

// What both passes look at.
struct Pass {
  Tensor q, k, v, mask;  // the mask [1 or B, 1 or H, T, S], or undefined
  bool causal;
  float scale;

  Pass(const Tensor& queries, const Tensor& keys, const Tensor& values, const std::optional<Tensor>& given, bool causal,
       double scale)
      : q(beside(queries)), k(beside(keys)), v(beside(values)), causal(causal), scale(static_cast<float>(scale)) {
    TORCH_CHECK(v.size(3) == width(), "keys and values of one width are needed, not ", width(), " and ", v.size(3));
    TORCH_CHECK(keys_count() > 0, "attention over no key");
    TORCH_CHECK(k.scalar_type() == v.scalar_type(), "keys and values of one type are needed");
    if (given) mask = given->to(at::kFloat).expand({-1, -1, queries_count(), keys_count()}).contiguous();
  }

  int64_t heads() const { return q.size(1); }
  int64_t groups() const { return q.size(1) / k.size(1); }
  int64_t width() const { return q.size(3); }
  int64_t queries_count() const { return q.size(2); }
  int64_t keys_count() const { return k.size(2); }

  // A query's row of the mask from a key on, or null.
  const float* masked(int64_t batch, int64_t head, int64_t query, int64_t key) const {
    if (!mask.defined()) return nullptr;
    const int64_t b = mask.size(0) == 1 ? 0 : batch, h = mask.size(1) == 1 ? 0 : head;
    return data_of<float>(mask) + b * mask.stride(0) + h * mask.stride(1) + query * keys_count() + key;
  }

  // Of `count` keys from `key` on, how many a query sees.
  int64_t seen(int64_t query, int64_t key, int64_t count) const {
    return causal ? std::clamp<int64_t>(query + 1 - key, 0, count) : count;
  }

  // Keys that any of the queries before `end` sees.
  int64_t seen_by(int64_t end) const { return causal ? std::min(keys_count(), end) : keys_count(); }
};

struct Room {
  std::vector<float> q, k, v, out, g, scores, gradients, sums, gq, gk, gv;
  int64_t group = -1;  // whose keys and values are there

  template <typename K>
  void read_keys(const Pass& pass, int64_t b, int64_t h) {
    const int64_t own = b * pass.k.size(1) + h / pass.groups();
    if (own == group) return;
    group = own;
    read<K>(pass.k, b, h / pass.groups(), k);
    read<K>(pass.v, b, h / pass.groups(), v);
  }
};

// T: what queries and outputs are; K: keys and values.
template <typename T, typename K>
void head_forward(const Pass& pass, Room& room, int64_t b, int64_t h, const Tensor& out, float* log_sums) {
  const int64_t width = pass.width(), all = pass.queries_count();
  read<T>(pass.q, b, h, room.q);
  room.read_keys<K>(pass, b, h);
  room.scores.resize(kQueries * kKeys);
  room.sums.resize(kQueries * width);
  T* to = data_of<T>(out) + b * out.stride(0) + h * out.stride(1);
  for (int64_t first = 0; first < all; first += kQueries) {
    const int64_t queries = std::min(kQueries, all - first), end = pass.seen_by(first + queries);
    float most[kQueries], sums[kQueries] = {};
    std::fill_n(most, queries, kNone);
    for (int64_t key = 0; key < end; key += kKeys) {
      const int64_t count = std::min(kKeys, end - key);
      multiply(queries, count, width, {&room.q[first * width], width}, {&room.k[key * width], width, true},
               room.scores.data(), count, false);
      for (int64_t i = 0; i < queries; ++i) {
        float* scores = &room.scores[i * count];
        const int64_t seen = pass.seen(first + i, key, count);
        const float largest = std::max(most[i], scaled(scores, pass.masked(b, h, first + i, key), pass.scale, seen));
        // Of a query that sees nothing so far nothing is added up.
        const bool sees = largest != kNone;
        const float factor = sees ? exp_of(most[i] - largest) : 1.0f;
        if (sees) sums[i] = sums[i] * factor + weigh(scores, largest, seen);
        std::fill(scores + (sees ? seen : 0), scores + count, 0.0f);
        if (key > 0 && factor != 1.0f) multiply_by(&room.sums[i * width], factor, width);
        most[i] = largest;
      }
      multiply(queries, width, count, {room.scores.data(), count}, {&room.v[key * width], width}, room.sums.data(), width,
               key > 0);
    }
    for (int64_t i = 0; i < queries; ++i) {
      // One that sees nothing has an output of zeros, and gives no gradient.
      const bool sees = most[i] != kNone;
      put(&room.sums[i * width], sees ? 1.0f / sums[i] : 0.0f, to + (first + i) * out.stride(2), width);
      log_sums[first + i] = sees ? most[i] + std::log(sums[i]) : 0.0f;
    }
  }
}

template <typename T>
void head_back(const Pass& pass, Room& room, int64_t b, int64_t h, const Tensor& out, const Tensor& gradient,
               const float* log_sums) {
  const int64_t width = pass.width(), all = pass.queries_count();
  read<T>(pass.q, b, h, room.q);
  room.read_keys<T>(pass, b, h);
  read<T>(out, b, h, room.out);
  read<T>(gradient, b, h, room.g);
  for (auto* scores : {&room.scores, &room.gradients}) scores->resize(kQueries * kKeys);
  room.gq.assign(all * width, 0.0f);
  for (auto* of_keys : {&room.gk, &room.gv}) of_keys->assign(pass.keys_count() * width, 0.0f);
  for (int64_t first = 0; first < all; first += kQueries) {
    const int64_t queries = std::min(kQueries, all - first), end = pass.seen_by(first + queries);
    const Matrix q{&room.q[first * width], width}, g{&room.g[first * width], width};
    for (int64_t key = 0; key < end; key += kKeys) {
      const int64_t count = std::min(kKeys, end - key);
      const Matrix k{&room.k[key * width], width}, v{&room.v[key * width], width};
      float *scores = room.scores.data(), *gradients = room.gradients.data();
      multiply(queries, count, width, q, {k.at, width, true}, scores, count, false);
      multiply(queries, count, width, g, {v.at, width, true}, gradients, count, false);
      for (int64_t i = 0; i < queries; ++i) {
        const int64_t at = first + i, seen = pass.seen(at, key, count);
        float *of_query = scores + i * count, *back = gradients + i * count;
        const float delta = dot_of(&room.out[at * width], &room.g[at * width], width);
        weigh_back(of_query, back, pass.masked(b, h, at, key), log_sums[at], delta, pass.scale, seen);
        std::fill(of_query + seen, of_query + count, 0.0f);
        std::fill(back + seen, back + count, 0.0f);
      }
      multiply(queries, width, count, {gradients, count}, k, &room.gq[first * width], width, true);
      multiply(count, width, queries, {gradients, count, true}, q, &room.gk[key * width], width, true);
      multiply(count, width, queries, {scores, count, true}, g, &room.gv[key * width], width, true);
    }
  }
}

}  // namespace
}  // namespace wide

using at::Tensor;

bool has_wide_attention(const Tensor& x) { return x.is_cpu() && wide::sgemm() != nullptr; }

std::pair<Tensor, Tensor> attention_wide(const Tensor& q, const Tensor& k, const Tensor& v,
                                         const std::optional<Tensor>& mask, bool causal, double scale) {
  const wide::Pass pass(q, k, v, mask, causal, scale);
  const int64_t batch = q.size(0), heads = pass.heads(), count = pass.queries_count();
  const Tensor out = heads_inside(q.sizes(), q), log_sums = at::empty({batch, heads, count}, q.options().dtype(at::kFloat));
  with_type(q, [&](auto* of) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(of)>>;
    with_type(k, [&](auto* of_keys) {
      using K = std::remove_const_t<std::remove_pointer_t<decltype(of_keys)>>;
      at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
        wide::Room room;
        for (int64_t i = begin; i < end; ++i) {
          wide::head_forward<T, K>(pass, room, i / heads, i % heads, out, data_of<float>(log_sums) + i * count);
        }
      });
    });
  });
  return {out, log_sums};
}

AttentionGradients attention_wide_gradient(const AttentionPass& of, const Tensor& gradient) {
  const wide::Pass pass(of.q, of.k, of.v, of.mask, of.causal, of.scale);
  const Tensor out = beside(of.out), g = beside(gradient.to(of.q.scalar_type()));
  const Tensor log_sums = of.log_sums.contiguous();  // [B, H, T]
  const int64_t batch = pass.q.size(0), heads = pass.heads(), groups = pass.groups();
  const int64_t keys = pass.keys_count(), width = pass.width();
  // Each query head its own, since two threads may have heads of one group; added up below.
  const std::array<int64_t, 4> of_keys = {batch, heads, keys, width};
  const Tensor gq = heads_inside(pass.q.sizes(), pass.q);
  const Tensor gk = heads_inside(of_keys, pass.q), gv = heads_inside(of_keys, pass.q);
  with_type(pass.q, [&](auto* kind) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(kind)>>;
    at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
      wide::Room room;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / heads, h = i % heads;
        wide::head_back<T>(pass, room, b, h, out, g, data_of<float>(log_sums) + i * pass.queries_count());
        wide::write<T>(room.gq, gq, b, h);
        wide::write<T>(room.gk, gk, b, h);
        wide::write<T>(room.gv, gv, b, h);
      }
    });
  });
  const auto gathered = [&](const Tensor& x) {
    if (groups == 1) return x;
    return x.reshape({batch, -1, groups, keys, width}).sum(2, false, at::kFloat).to(x.scalar_type());
  };
  return {gq, gathered(gk), gathered(gv)};
}

}  // namespace tailor
