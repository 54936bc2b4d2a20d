// The gradients of softmax(q·kᵀ·scale + mask)·v in bf16, block by block (FlashAttention-2, arXiv 2307.08691 §3.1,
// algorithm 2). libtorch's own kernel makes the same five products by calls that reach a quarter of the block products' speed.
//
// Scores are made the other way round, [keys, queries]. What belongs to a query (its log-sum, the edge of what it sees)
// then lies along a register, and Pᵀ and dSᵀ lie as the products for the gradients of keys and values read them.

#include "attention.h"
#include "attention_blocks.h"

#include <ATen/Parallel.h>

#include <array>
#include <vector>

namespace tailor {
namespace {

using at::Tensor;

// Keys and queries of a block.
constexpr int64_t kKeys = 64, kQueries = 512;

// xᵀ [width, padded rows], row by row.
void turn(const Rows& x, int64_t padded, Bits* to) {
  for (int64_t first = 0; first < x.width; first += kStep) {
    for (int64_t i = 0; i < padded; ++i) {
      for (int64_t j = first; j < first + kStep; ++j) to[j * padded + i] = i < x.count ? x.row(i)[j] : 0;
    }
  }
}

// Of two keys: from their scores and the gradients of their weights, for the queries that see them, the weights and the
// scores' gradients, these also as pairs. `first` is the first query that sees a key, `mask` may be null.
struct Two {
  const float *scores[2], *weights[2], *mask[2];
  int64_t first[2];
  Bits *p[2], *ds[2];
};
TAILOR_VECTORS void weigh(const Two& two, const float* log_sums, const float* deltas, float scale, int64_t from,
                          int64_t queries) {
  for (int key = 0; key < 2; ++key) {
    const float *s = two.scores[key], *dp = two.weights[key], *mask = two.mask[key];
    Bits *p = two.p[key], *ds = two.ds[key];
    const int64_t first = std::max(from, std::min(two.first[key], queries));
    for (int64_t j = from; j < first; ++j) p[j] = ds[j] = 0;
    if (mask == nullptr) {
      for (int64_t j = first; j < queries; ++j) {
        const float weight = exp_of(s[j] * scale - log_sums[j]);
        store(p + j, weight);
        store(ds + j, weight * (dp[j] - deltas[j]) * scale);
      }
    } else {
      for (int64_t j = first; j < queries; ++j) {
        const float weight = exp_of(s[j] * scale + mask[j] - log_sums[j]);
        store(p + j, weight);
        store(ds + j, weight * (dp[j] - deltas[j]) * scale);
      }
    }
  }
}

TAILOR_VECTORS float dot_of(const Bits* a, const Bits* b, int64_t count) {
  float lanes[kLanes] = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += load(a + j + l) * load(b + j + l);
  }
  return sum_of(lanes);
}

TAILOR_VECTORS void narrow(const float* from, Bits* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) store(to + j, from[j]);
}

// One thread's room: a head's keys and values, a block of its queries, and what is made of both.
struct Room {
  int64_t width, keys, queries;  // the last two padded
  std::vector<Bits> k, v, k_turned, q_turned, g_turned, q, g, p, ds, ds_pairs;
  std::vector<float> s, dp, gk, gv, gq_turned, log_sums, deltas;

  Room(int64_t width, int64_t all_keys, int64_t all_queries)
      : width(width), keys(whole(all_keys, kKeys)), queries(std::min(kQueries, whole(all_queries, kPanel))) {
    for (auto* of_keys : {&k, &v, &k_turned}) of_keys->resize(keys * width);
    for (auto* of_queries : {&q_turned, &g_turned, &q, &g}) of_queries->resize(queries * width);
    for (auto* of_both : {&p, &ds, &ds_pairs}) of_both->resize(kKeys * queries);
    for (auto* of_both : {&s, &dp}) of_both->resize(kKeys * queries);
    for (auto* of_keys : {&gk, &gv}) of_keys->resize(keys * width);
    gq_turned.resize(width * queries);
    for (auto* of_queries : {&log_sums, &deltas}) of_queries->resize(queries);
  }
};

// A head: its rows, the mask turned [S, T] or null, and where its gradients go.
struct Head {
  Rows q, k, v, out, g;
  const float *log_sums, *mask;
  bool causal;
  float scale;
  Bits *gq, *gk, *gv;
  int64_t gq_stride, gk_stride, gv_stride;
};

// Adds what a block of keys and a block of queries, from query `from` of it on, have to do with each other.
void block(const Head& head, Room& room, int64_t first_query, int64_t padded, int64_t first_key, int64_t from) {
  const int64_t width = room.width, queries = padded;
  for (int64_t j = from; j < queries; j += kPanel) {
    const int64_t panel = j * width;
    multiply(kKeys, kPanel, width, &room.k[first_key * width], width, &room.q_turned[panel], &room.s[j], queries, false);
    multiply(kKeys, kPanel, width, &room.v[first_key * width], width, &room.g_turned[panel], &room.dp[j], queries, false);
  }
  const int64_t all_queries = head.q.count;
  for (int64_t i = 0; i < kKeys; i += 2) {
    Two two{};
    for (int64_t key = 0; key < 2; ++key) {
      const int64_t row = (i + key) * queries, number = first_key + i + key;
      two.scores[key] = &room.s[row];
      two.weights[key] = &room.dp[row];
      two.p[key] = &room.p[row];
      two.ds[key] = &room.ds[row];
      const bool there = number < head.k.count;
      two.first[key] = !there ? queries : (head.causal ? number - first_query : 0);
      if (head.mask != nullptr && there) two.mask[key] = head.mask + number * all_queries + first_query;
    }
    const int64_t real = std::min(queries, all_queries - first_query);
    weigh(two, room.log_sums.data(), room.deltas.data(), head.scale, from, real);
    for (int64_t key = 0; key < 2; ++key) {
      std::fill(two.p[key] + real, two.p[key] + queries, 0);
      std::fill(two.ds[key] + real, two.ds[key] + queries, 0);
    }
    for (int64_t j = from; j < queries; j += kPanel) {
      interleave(two.ds[0] + j, two.ds[1] + j, &room.ds_pairs[j * kKeys + i * kPanel], kPanel);
    }
  }
  for (int64_t first = 0; first < width; first += kPanel) {
    const int64_t columns = std::min(kPanel, width - first), panel = first * queries + from * columns;
    float *gv = &room.gv[first_key * width + first], *gk = &room.gk[first_key * width + first];
    multiply(kKeys, columns, queries - from, &room.p[from], queries, &room.g[panel], gv, width, true);
    multiply(kKeys, columns, queries - from, &room.ds[from], queries, &room.q[panel], gk, width, true);
  }
  for (int64_t j = from; j < queries; j += kPanel) {
    multiply(width, kPanel, kKeys, &room.k_turned[first_key], room.keys, &room.ds_pairs[j * kKeys], &room.gq_turned[j],
             queries, true);
  }
}

void of_head(const Head& head, Room& room) {
  const int64_t width = room.width;
  for (const auto& [rows, to] : {std::pair{&head.k, &room.k}, std::pair{&head.v, &room.v}}) {
    for (int64_t i = 0; i < rows->count; ++i) std::copy_n(rows->row(i), width, to->data() + i * width);
  }
  turn(head.k, room.keys, room.k_turned.data());
  std::fill(room.gk.begin(), room.gk.end(), 0.0f);
  std::fill(room.gv.begin(), room.gv.end(), 0.0f);
  for (int64_t first = 0; first < head.q.count; first += kQueries) {
    const Rows q = head.q.from(first, kQueries), g = head.g.from(first, kQueries), out = head.out.from(first, kQueries);
    const int64_t padded = whole(q.count, kPanel);
    place_turned(q, padded, room.q_turned.data());
    place_turned(g, padded, room.g_turned.data());
    place(q, padded, room.q.data());
    place(g, padded, room.g.data());
    for (int64_t i = 0; i < q.count; ++i) {
      room.log_sums[i] = head.log_sums[first + i];
      room.deltas[i] = dot_of(out.row(i), g.row(i), width);
    }
    std::fill(room.gq_turned.begin(), room.gq_turned.end(), 0.0f);
    for (int64_t key = 0; key < head.k.count; key += kKeys) {
      const int64_t from = head.causal ? std::max<int64_t>(0, key - first) / kPanel * kPanel : 0;
      if (from < padded) block(head, room, first, padded, key, from);
    }
    for (int64_t i = 0; i < q.count; ++i) {
      Bits* to = head.gq + (first + i) * head.gq_stride;
      for (int64_t j = 0; j < width; ++j) store(to + j, room.gq_turned[j * padded + i]);
    }
  }
  for (int64_t i = 0; i < head.k.count; ++i) {
    narrow(&room.gk[i * width], head.gk + i * head.gk_stride, width);
    narrow(&room.gv[i * width], head.gv + i * head.gv_stride, width);
  }
}

}  // namespace

AttentionGradients attention_gradient(const AttentionPass& pass, const Tensor& gradient) {
  const Tensor q = beside(pass.q), k = beside(pass.k), v = beside(pass.v), out = beside(pass.out);
  const Tensor g = beside(gradient), log_sums = pass.log_sums.contiguous();  // [B, H, T]
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), keys = k.size(2), width = q.size(3);
  const int64_t groups = heads / k.size(1);
  TORCH_CHECK(v.size(3) == width, "keys and values of one width are needed, not ", width, " and ", v.size(3));
  Tensor mask;  // [1 or B, 1 or H, S, T]
  if (pass.mask) mask = pass.mask->to(at::kFloat).expand({-1, -1, queries, keys}).transpose(2, 3).contiguous();
  // Each query head its own, since two threads may have heads of one group; added up below.
  const std::array<int64_t, 4> of_keys = {batch, heads, keys, width};
  const Tensor gq = heads_inside(q.sizes(), q), gk = heads_inside(of_keys, q), gv = heads_inside(of_keys, q);
  at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    Room room(width, keys, queries);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / heads, h = i % heads;
      const auto place = [&](const Tensor& x) { return data_of<Bits>(x) + b * x.stride(0) + h * x.stride(1); };
      const float* seen = nullptr;
      if (mask.defined()) {
        const int64_t from_batch = mask.size(0) == 1 ? 0 : b, from_head = mask.size(1) == 1 ? 0 : h;
        seen = data_of<float>(mask) + from_batch * mask.stride(0) + from_head * mask.stride(1);
      }
      of_head({rows_of(q, b, h), rows_of(k, b, h / groups), rows_of(v, b, h / groups), rows_of(out, b, h),
               rows_of(g, b, h), data_of<float>(log_sums) + i * queries, seen, pass.causal,
               static_cast<float>(pass.scale), place(gq), place(gk), place(gv), gq.stride(2), gk.stride(2), gv.stride(2)},
              room);
    }
    at::native::cpublas::brgemm_release();
  });
  const auto gathered = [&](const Tensor& x) {
    if (groups == 1) return x;
    return x.view({batch, -1, groups, keys, width}).sum(2, false, at::kFloat).to(x.scalar_type());
  };
  return {gq, gathered(gk), gathered(gv)};
}

}  // namespace tailor
