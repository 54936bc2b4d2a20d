// What a step of serving launches (models/src/step.rs): kernels that read and write tensors which are there already. No
// history, no memory of its own, so that a launch costs the host little more than the driver's call.

#include "common.h"
#include "device.h"

#include "../kernels/params.h"

namespace {

using namespace tailor;

const Tensor& bf16_matrix(const void* handle, int64_t columns, const char* name) {
  const Tensor& x = tensor_of(handle);
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && x.dim() == 2 && x.is_contiguous() && x.size(1) == columns && aligned16(x),
              name, " is ", x.scalar_type(), " ", x.sizes(), "; bfloat16 [N, ", columns, "] without gaps is needed");
  return x;
}

struct Numbers {
  TailorPagedStep step;
  int64_t rows;

  explicit Numbers(const TailorStepNumbers& given) : rows(given.rows) {
    const Tensor& all = tensor_of(given.numbers);
    TORCH_CHECK(all.scalar_type() == at::kInt && all.is_contiguous() && rows > 0 && all.numel() > 3 * rows,
                "numbers of a step of ", rows, " rows: ", all.scalar_type(), " ", all.sizes());
    const int* const begin = all.data_ptr<int>();
    step = {begin, begin + rows, begin + 2 * rows, begin + 3 * rows};
  }
};

}  // namespace

extern "C" {

int32_t tailor_step_norm(const void* x, const void* weight, double epsilon, int32_t one_plus, void* y, void* roots) {
  return shielded([&] {
    const Tensor& scale = tensor_of(weight);
    const int64_t width = scale.numel();
    const Tensor &from = bf16_matrix(x, width, "x"), &to = bf16_matrix(y, width, "y"), &r = tensor_of(roots);
    TORCH_CHECK(scale.scalar_type() == at::kBFloat16 && scale.is_contiguous() && r.scalar_type() == at::kFloat &&
                    r.numel() >= from.size(0) && to.size(0) == from.size(0),
                "norm of ", from.sizes(), " into ", to.sizes());
    const bool wide = width % 8 == 0 && aligned16(scale);
    launch(from, wide ? "tailor_rms_norm_bf16_vec" : "tailor_rms_norm_bf16", from.size(0), 256, from.data_ptr(),
           scale.data_ptr(), to.data_ptr(), r.data_ptr<float>(), uint32_t(width), float(epsilon), uint32_t(one_plus));
  });
}

int32_t tailor_step_gated(const void* both, int32_t activation, void* y) {
  return shielded([&] {
    const Tensor& to = tensor_of(y);
    const int64_t width = to.size(-1);
    const Tensor& from = bf16_matrix(both, 2 * width, "gate and up");
    TORCH_CHECK(bf16_matrix(y, width, "y").size(0) == from.size(0), "gate ", from.sizes(), " into ", to.sizes());
    const bool wide = width % 8 == 0;
    const int64_t parts = width / (wide ? 8 : 1), units = parts * from.size(0);
    TORCH_CHECK(units < (int64_t(1) << 32), "a gate of ", from.sizes(), " is too large for one launch");
    char* const begin = static_cast<char*>(from.data_ptr());
    void* const gate = begin;
    void* const up = begin + width * 2;
    launch(from, wide ? "tailor_gated_bf16_vec" : "tailor_gated_bf16", ceil_div(units, 256), 256, gate, up, to.data_ptr(),
           uint32_t(units), uint32_t(parts), (unsigned long long)(2 * width), uint32_t(activation));
  });
}

int32_t tailor_step_turn(void* product, const void* frequencies, const TailorStepNumbers* numbers, void* keys,
                         void* values, int64_t heads) {
  return shielded([&] {
    const Numbers all(*numbers);
    const Tensor &k = tensor_of(keys), &v = tensor_of(values), &f = tensor_of(frequencies);
    TORCH_CHECK(k.dim() == 3 && k.sizes() == v.sizes() && k.is_contiguous() && v.is_contiguous() &&
                    k.scalar_type() == at::kBFloat16 && v.scalar_type() == at::kBFloat16,
                "pages are bfloat16 [slots, K, Dh], not ", k.sizes(), " and ", v.sizes());
    const int64_t kv_heads = k.size(1), half = k.size(2) / 2;
    const Tensor& x = bf16_matrix(product, (heads + 2 * kv_heads) * k.size(2), "q, k and v");
    TORCH_CHECK(f.scalar_type() == at::kFloat && f.is_contiguous() && f.numel() == half && x.size(0) == all.rows,
                "angles ", f.sizes(), " for ", x.sizes());
    const int64_t pairs = x.numel() / 2;
    TORCH_CHECK(pairs < (int64_t(1) << 32), "a step of ", x.sizes(), " is too large for one launch");
    launch(x, "tailor_turn_and_keep", ceil_div(pairs, 256), 256, x.data_ptr(), f.data_ptr<float>(), all.step, k.data_ptr(),
           v.data_ptr(), uint32_t(all.rows), uint32_t(heads), uint32_t(kv_heads), uint32_t(half));
  });
}

int32_t tailor_step_attend(const void* product, const TailorStepNumbers* numbers, const void* keys, const void* values,
                           int64_t heads, int64_t window, double scale, double softcap, void* out) {
  return shielded([&] {
    const Numbers all(*numbers);
    const Tensor &k = tensor_of(keys), &v = tensor_of(values);
    const int64_t kv_heads = k.size(1), width = k.size(2), lanes = width / 8;
    const Tensor& x = bf16_matrix(product, (heads + 2 * kv_heads) * width, "q, k and v");
    const Tensor& to = bf16_matrix(out, heads * width, "attention's result");
    TORCH_CHECK(width % 8 == 0 && lanes >= 1 && lanes <= 32 && (lanes & (lanes - 1)) == 0 && heads % kv_heads == 0,
                "no kernel attends with ", heads, " heads of ", width, " over ", kv_heads);
    TORCH_CHECK(x.size(0) == all.rows && to.size(0) == all.rows, "attention of ", x.sizes(), " into ", to.sizes());
    const int64_t groups = ceil_div(heads / kv_heads, 4);
    launch(x, "tailor_attend_pages", all.rows * kv_heads * groups, 256, x.data_ptr(),
           (unsigned long long)((heads + 2 * kv_heads) * width), k.data_ptr(), v.data_ptr(), all.step, to.data_ptr(),
           uint32_t(heads), uint32_t(kv_heads), uint32_t(lanes), uint32_t(window), float(scale), float(softcap));
  });
}

int32_t tailor_step_low_rank(const void* x, const void* terms, int64_t first, const int64_t* outs, size_t count,
                             int64_t most, void* inner, void* y) {
  return shielded([&] {
    TORCH_CHECK(count >= 1 && count <= TAILOR_MAX_PARTS, count, " weights in one launch; the limit is ", TAILOR_MAX_PARTS);
    const Tensor &all = tensor_of(terms), &given = tensor_of(x);
    const Tensor& from = bf16_matrix(x, given.size(-1), "x");
    const int64_t rows = from.size(0), in = from.size(1);
    TailorLowRankOutputs outputs{};
    outputs.count = uint32_t(count);
    for (size_t i = 0; i < count; ++i) outputs.starts[i + 1] = outputs.starts[i] + uint32_t(outs[i]);
    const int64_t width = outputs.starts[count];
    const Tensor &to = bf16_matrix(y, width, "y"), &h = tensor_of(inner);
    const int64_t size = sizeof(TailorLowRankTerm);
    TORCH_CHECK(in % 8 == 0 && to.size(0) == rows && most > 0 && h.scalar_type() == at::kFloat &&
                    h.numel() >= int64_t(count) * rows * most && all.scalar_type() == at::kByte &&
                    all.numel() >= (first + int64_t(count)) * rows * size,
                "LoRA of ", from.sizes(), " into ", to.sizes(), " by terms from ", first, " on of ", all.sizes());
    void* const own = static_cast<char*>(all.data_ptr()) + first * rows * size;
    const int64_t chunks = ceil_div(most, 8), blocks = ceil_div(width, 256);
    launch(from, "tailor_low_rank_inner", int64_t(count) * rows * chunks, 256, from.data_ptr(), own, h.data_ptr<float>(),
           uint32_t(rows), uint32_t(in), uint32_t(most), uint32_t(chunks));
    launch(from, "tailor_low_rank_outer", rows * blocks, 256, h.data_ptr<float>(), own, to.data_ptr(), outputs,
           uint32_t(rows), uint32_t(most), uint32_t(blocks));
  });
}
}
