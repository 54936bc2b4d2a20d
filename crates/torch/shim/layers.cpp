// What stands between a layer's products, each as one operator that keeps little for its backward pass: the root mean
// square norm, the rotation of positions, the gated activation. Plain operators would write every intermediate to memory
// and keep most of them.
//
// Where the plain operators round to the compute type in between, these do too only where it is the reference's
// definition (the norm, before its weight); everything else is made in f32 and rounded once.

#include "rows.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

namespace tailor {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Elements that one task takes at least.
constexpr int64_t kGrain = 1 << 15;

template <typename F>
void each_row(int64_t rows, int64_t width, F&& f) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(width, 1)), f);
}

// ---- y += s·u ------------------------------------------------------------------------------------------------------

template <typename T>
TAILOR_INLINE void add_scaled(T* y, const float* u, float scale, int64_t count) {
  for (int64_t j = 0; j < count; ++j) store(y + j, load(y + j) + scale * u[j]);
}
TAILOR_VECTORS void add_scaled_f32(float* y, const float* u, float s, int64_t n) { add_scaled(y, u, s, n); }
TAILOR_VECTORS void add_scaled_bf16(uint16_t* y, const float* u, float s, int64_t n) { add_scaled(y, u, s, n); }
void add_scaled_row(float* y, const float* u, float s, int64_t n) { add_scaled_f32(y, u, s, n); }
void add_scaled_row(uint16_t* y, const float* u, float s, int64_t n) { add_scaled_bf16(y, u, s, n); }

// ---- root mean square norm -----------------------------------------------------------------------------------------

// How the weight scales: by w, once the normed value has been rounded; or by 1 + w, in f32 (Gemma).
enum Scale : int64_t { kWeight = 0, kOnePlusWeight = 1 };

template <typename T>
TAILOR_INLINE float norm_row(const T* x, const T* w, T* y, int64_t width, float eps, bool one_plus) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const float v = load(x + j + l);
      lanes[l] += v * v;
    }
  }
  float sum = sum_of(lanes);
  for (; j < width; ++j) sum += load(x + j) * load(x + j);
  const float r = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  if (one_plus) {
    for (j = 0; j < width; ++j) store(y + j, load(x + j) * r * (load(w + j) + 1.0f));
  } else {
    for (j = 0; j < width; ++j) store(y + j, rounded(x, load(x + j) * r) * load(w + j));
  }
  return r;
}
TAILOR_VECTORS float norm_f32(const float* x, const float* w, float* y, int64_t n, float eps, bool one_plus) {
  return norm_row(x, w, y, n, eps, one_plus);
}
TAILOR_VECTORS float norm_bf16(const uint16_t* x, const uint16_t* w, uint16_t* y, int64_t n, float eps, bool one_plus) {
  return norm_row(x, w, y, n, eps, one_plus);
}
float norm_of(const float* x, const float* w, float* y, int64_t n, float e, bool p) { return norm_f32(x, w, y, n, e, p); }
float norm_of(const uint16_t* x, const uint16_t* w, uint16_t* y, int64_t n, float e, bool p) {
  return norm_bf16(x, w, y, n, e, p);
}

// gx = r·(u − n·mean(u·n)) with n = x·r and u = g·w.
template <typename T>
TAILOR_INLINE void norm_back_row(const T* g, const T* x, const T* w, T* gx, int64_t width, float r, float plus) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += load(g + j + l) * (load(w + j + l) + plus) * load(x + j + l);
  }
  float sum = sum_of(lanes);
  for (; j < width; ++j) sum += load(g + j) * (load(w + j) + plus) * load(x + j);
  const float pull = sum * r * r / static_cast<float>(width);
  for (j = 0; j < width; ++j) store(gx + j, r * (load(g + j) * (load(w + j) + plus) - load(x + j) * pull));
}
TAILOR_VECTORS void norm_back_f32(const float* g, const float* x, const float* w, float* gx, int64_t n, float r, float p) {
  norm_back_row(g, x, w, gx, n, r, p);
}
TAILOR_VECTORS void norm_back_bf16(const uint16_t* g, const uint16_t* x, const uint16_t* w, uint16_t* gx, int64_t n,
                                   float r, float p) {
  norm_back_row(g, x, w, gx, n, r, p);
}
void norm_back(const float* g, const float* x, const float* w, float* gx, int64_t n, float r, float p) {
  norm_back_f32(g, x, w, gx, n, r, p);
}
void norm_back(const uint16_t* g, const uint16_t* x, const uint16_t* w, uint16_t* gx, int64_t n, float r, float p) {
  norm_back_bf16(g, x, w, gx, n, r, p);
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double eps, bool one_plus) {
    const int64_t width = x.size(-1);
    const Tensor in = x.contiguous(), w = weight.contiguous();
    const int64_t rows = width == 0 ? 0 : in.numel() / width;
    Tensor y = at::empty(x.sizes(), x.options());
    Tensor roots = at::empty({rows}, x.options().dtype(at::kFloat));
    with_type(in, [&](auto* from) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      T* to = data_of<T>(y);
      const T* scale = data_of<T>(w);
      float* r = data_of<float>(roots);
      each_row(rows, width, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          r[i] = norm_of(from + i * width, scale, to + i * width, width, static_cast<float>(eps), one_plus);
        }
      });
    });
    ctx->save_for_backward({in, w, roots});
    ctx->saved_data["plus"] = one_plus ? 1.0 : 0.0;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &roots = saved[2];
    const Tensor g = gradients[0].contiguous();
    const auto plus = static_cast<float>(ctx->saved_data["plus"].toDouble());
    const int64_t width = x.size(-1);
    Tensor gx = at::empty(x.sizes(), x.options());
    with_type(x, [&](auto* from) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      const T *back = data_of<T>(g), *scale = data_of<T>(w);
      T* to = data_of<T>(gx);
      const float* r = data_of<float>(roots);
      each_row(roots.size(0), width, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          norm_back(back + i * width, from + i * width, scale, to + i * width, width, r[i], plus);
        }
      });
    });
    return {gx, Tensor(), Tensor(), Tensor()};
  }
};

// ---- rotary positions ----------------------------------------------------------------------------------------------

// Pairs are (i, i + half). `way` is 1, or -1 for the gradient: the inverse of a rotation is its transpose.
// Angles that are brought into f32 at a time, once for all heads.
constexpr int64_t kAngles = 64;

template <typename T>
TAILOR_INLINE void turn_token(const T* __restrict x, const T* cosine, const T* sine, T* __restrict y, int64_t heads, int64_t half,
                              float way) {
  float c0[kAngles], c1[kAngles], s0[kAngles], s1[kAngles];
  for (int64_t first = 0; first < half; first += kAngles) {
    const int64_t count = std::min(kAngles, half - first);
    // The two halves of cos and sin are equal in the checkpoints' layout, but nothing here relies on it.
    const T *low = sine + first, *high = sine + half + first;
    for (int64_t j = 0; j < count; ++j) {
      c0[j] = load(cosine + first + j);
      c1[j] = load(cosine + half + first + j);
      s0[j] = way * load((way > 0 ? low : high) + j);
      s1[j] = way * load((way > 0 ? high : low) + j);
    }
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t at = h * 2 * half + first;
      for (int64_t j = 0; j < count; ++j) {
        const float a = load(x + at + j), b = load(x + at + half + j);
        store(y + at + j, a * c0[j] - b * s0[j]);
        store(y + at + half + j, b * c1[j] + a * s1[j]);
      }
    }
  }
}
TAILOR_VECTORS void turn_f32(const float* x, const float* c, const float* s, float* y, int64_t heads, int64_t half, float way) {
  turn_token(x, c, s, y, heads, half, way);
}
TAILOR_VECTORS void turn_bf16(const uint16_t* x, const uint16_t* c, const uint16_t* s, uint16_t* y, int64_t heads,
                              int64_t half, float way) {
  turn_token(x, c, s, y, heads, half, way);
}
void turn(const float* x, const float* c, const float* s, float* y, int64_t heads, int64_t half, float way) {
  turn_f32(x, c, s, y, heads, half, way);
}
void turn(const uint16_t* x, const uint16_t* c, const uint16_t* s, uint16_t* y, int64_t heads, int64_t half, float way) {
  turn_bf16(x, c, s, y, heads, half, way);
}

// `x` [B, H, T, Dh], which lies in memory as [B, T, H, Dh] or is brought there; `cosine`, `sine` [B or 1, 1, T, Dh].
Tensor turned(const Tensor& x, const Tensor& cosine, const Tensor& sine, float way) {
  const Tensor in = x.transpose(1, 2).contiguous();  // [B, T, H, Dh]
  const int64_t batch = in.size(0), tokens = in.size(1), heads = in.size(2), width = in.size(3);
  const int64_t angles = cosine.size(0) == 1 ? 0 : tokens * width;  // from one text's angles to the next
  Tensor out = at::empty(in.sizes(), in.options());
  with_type(in, [&](auto* from) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
    T* to = data_of<T>(out);
    const T *c = data_of<T>(cosine), *s = data_of<T>(sine);
    each_row(batch * tokens, heads * width, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i / tokens * angles + i % tokens * width;
        turn(from + i * heads * width, c + at, s + at, to + i * heads * width, heads, width / 2, way);
      }
    });
  });
  return out.transpose(1, 2);
}

struct Rotate : torch::autograd::Function<Rotate> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cosine, const Tensor& sine) {
    const Tensor c = cosine.contiguous(), s = sine.contiguous();
    ctx->save_for_backward({c, s});
    return turned(x, c, s, 1);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    return {turned(gradients[0], saved[0], saved[1], -1), Tensor(), Tensor()};
  }
};

// ---- gated activations ---------------------------------------------------------------------------------------------

// x·σ(a(x)): with a(x) = x that is SiLU, with a(x) = 2√(2/π)·(x + 0.044715·x³) GELU by its tanh approximation.
struct Silu {
  static TAILOR_INLINE float inner(float x) { return x; }
  static TAILOR_INLINE float slope(float) { return 1.0f; }
};
struct GeluTanh {
  static TAILOR_INLINE float inner(float x) { return 1.5957691216057308f * (x + 0.044715f * x * x * x); }
  static TAILOR_INLINE float slope(float x) { return 1.5957691216057308f * (1.0f + 0.134145f * x * x); }
};

// act(g)·u (arXiv 2002.05202 §2)
template <typename A, typename T>
TAILOR_INLINE void gate_row(const T* g, const T* u, T* y, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    const float x = load(g + j);
    store(y + j, x / (1.0f + exp_of(-A::inner(x))) * load(u + j));
  }
}
template <typename A, typename T>
TAILOR_INLINE void gate_back_row(const T* gy, const T* g, const T* u, T* gg, T* gu, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    const float x = load(g + j), back = load(gy + j);
    const float sigma = 1.0f / (1.0f + exp_of(-A::inner(x)));
    const float active = x * sigma;
    store(gg + j, back * load(u + j) * (sigma + active * (1.0f - sigma) * A::slope(x)));
    store(gu + j, back * active);
  }
}
using Bits = uint16_t;
TAILOR_VECTORS void silu_f32(const float* g, const float* u, float* y, int64_t n) { gate_row<Silu>(g, u, y, n); }
TAILOR_VECTORS void silu_bf16(const Bits* g, const Bits* u, Bits* y, int64_t n) { gate_row<Silu>(g, u, y, n); }
TAILOR_VECTORS void gelu_f32(const float* g, const float* u, float* y, int64_t n) { gate_row<GeluTanh>(g, u, y, n); }
TAILOR_VECTORS void gelu_bf16(const Bits* g, const Bits* u, Bits* y, int64_t n) { gate_row<GeluTanh>(g, u, y, n); }
TAILOR_VECTORS void silu_back_f32(const float* b, const float* g, const float* u, float* x, float* y, int64_t n) {
  gate_back_row<Silu>(b, g, u, x, y, n);
}
TAILOR_VECTORS void silu_back_bf16(const Bits* b, const Bits* g, const Bits* u, Bits* x, Bits* y, int64_t n) {
  gate_back_row<Silu>(b, g, u, x, y, n);
}
TAILOR_VECTORS void gelu_back_f32(const float* b, const float* g, const float* u, float* x, float* y, int64_t n) {
  gate_back_row<GeluTanh>(b, g, u, x, y, n);
}
TAILOR_VECTORS void gelu_back_bf16(const Bits* b, const Bits* g, const Bits* u, Bits* x, Bits* y, int64_t n) {
  gate_back_row<GeluTanh>(b, g, u, x, y, n);
}
void gate(bool gelu, const float* g, const float* u, float* y, int64_t n) { (gelu ? gelu_f32 : silu_f32)(g, u, y, n); }
void gate(bool gelu, const Bits* g, const Bits* u, Bits* y, int64_t n) { (gelu ? gelu_bf16 : silu_bf16)(g, u, y, n); }
void gate_back(bool gelu, const float* b, const float* g, const float* u, float* x, float* y, int64_t n) {
  (gelu ? gelu_back_f32 : silu_back_f32)(b, g, u, x, y, n);
}
void gate_back(bool gelu, const Bits* b, const Bits* g, const Bits* u, Bits* x, Bits* y, int64_t n) {
  (gelu ? gelu_back_bf16 : silu_back_bf16)(b, g, u, x, y, n);
}

struct Gated : torch::autograd::Function<Gated> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_in, const Tensor& up_in, bool gelu) {
    const Tensor g = gate_in.contiguous(), u = up_in.contiguous();
    Tensor y = at::empty(g.sizes(), g.options());
    with_type(g, [&](auto* from) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      const T* other = data_of<T>(u);
      T* to = data_of<T>(y);
      at::parallel_for(0, g.numel(), kGrain, [&](int64_t begin, int64_t end) {
        gate(gelu, from + begin, other + begin, to + begin, end - begin);
      });
    });
    ctx->save_for_backward({g, u});
    ctx->saved_data["gelu"] = gelu;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    const Tensor &g = saved[0], &u = saved[1];
    const bool gelu = ctx->saved_data["gelu"].toBool();
    const Tensor gy = gradients[0].contiguous();
    Tensor gg = at::empty(g.sizes(), g.options()), gu = at::empty(g.sizes(), g.options());
    with_type(g, [&](auto* from) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      const T *back = data_of<T>(gy), *other = data_of<T>(u);
      T *to_gate = data_of<T>(gg), *to_up = data_of<T>(gu);
      at::parallel_for(0, g.numel(), kGrain, [&](int64_t begin, int64_t end) {
        gate_back(gelu, back + begin, from + begin, other + begin, to_gate + begin, to_up + begin, end - begin);
      });
    });
    return {gg, gu, Tensor()};
  }
};

}  // namespace

void add_scaled_(Tensor& y, const Tensor& u, double scale) {
  TORCH_CHECK(y.is_contiguous() && u.is_contiguous() && y.numel() == u.numel(), "sums of equal, contiguous tensors only");
  with_type(y, [&](auto* of) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(of)>>;
    T* to = data_of<T>(y);
    const float* from = data_of<float>(u);
    at::parallel_for(0, y.numel(), kGrain, [&](int64_t begin, int64_t end) {
      add_scaled_row(to + begin, from + begin, static_cast<float>(scale), end - begin);
    });
  });
}

}  // namespace tailor

using namespace tailor;

extern "C" {

int32_t tailor_rms_norm(const void* x, const void* weight, double eps, bool one_plus, void** result) {
  return guarded([&] {
    const at::Tensor &in = tensor(x), &w = tensor(weight);
    TORCH_CHECK(in.dim() > 0 && w.dim() == 1 && w.size(0) == in.size(-1) && w.scalar_type() == in.scalar_type(),
                "a norm's weight ", w.sizes(), " does not fit ", in.sizes());
    *result = handle(RmsNorm::apply(in, w, eps, one_plus));
  });
}

int32_t tailor_rotate(const void* x, const void* cosine, const void* sine, void** result) {
  return guarded([&] {
    const at::Tensor &in = tensor(x), &c = tensor(cosine), &s = tensor(sine);
    TORCH_CHECK(in.dim() == 4 && c.dim() == 4 && c.sizes() == s.sizes() && c.size(1) == 1 && in.size(3) % 2 == 0 &&
                    (c.size(0) == 1 || c.size(0) == in.size(0)) && c.size(2) == in.size(2) && c.size(3) == in.size(3) &&
                    c.scalar_type() == in.scalar_type() && s.scalar_type() == in.scalar_type(),
                "angles ", c.sizes(), " do not fit ", in.sizes());
    *result = handle(Rotate::apply(in, c, s));
  });
}

int32_t tailor_gated(const void* gate, const void* up, bool gelu, void** result) {
  return guarded([&] {
    const at::Tensor &g = tensor(gate), &u = tensor(up);
    TORCH_CHECK(g.sizes() == u.sizes() && g.scalar_type() == u.scalar_type(), "a gate ", g.sizes(), " and ", u.sizes());
    *result = handle(Gated::apply(g, u, gelu));
  });
}
}
