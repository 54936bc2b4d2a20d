// The 4-bit linear layer and LoRA where kernels run. As in shim.cpp, a dequantised weight is never saved for backward.

#include "common.h"
#include "device.h"
#include "shim.h"
#include "tape.h"

#include "../kernels/params.h"

#include <utility>
#include <vector>

namespace {

using namespace tailor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Elements a block of the kernel works on (kernels/dequantize.cu).
constexpr int64_t BLOCK_ELEMENTS = 256 * 4 * 8;

struct FourBit : torch::CustomClassHolder {
  Tensor packed, codes, map, absmax, minimum, values;
  int64_t out, in;
  uint32_t block_log2, nested_block, scales, rounding;
  float offset;

  explicit FourBit(const TailorFourBit& parts) : out(parts.out), in(parts.in), nested_block(parts.nested_block),
                                                 scales(parts.scales), rounding(parts.rounding), offset(parts.offset) {
    TORCH_CHECK(out > 0 && in > 0, "a weight of ", out, "×", in);
    TORCH_CHECK(out <= (int64_t(1) << 32) / in, "a weight of ", out, "×", in, " has more than 2^32 values");
    TORCH_CHECK(parts.block >= 2 && (parts.block & (parts.block - 1)) == 0, "block of ", parts.block,
                " elements is not a power of two above 1");
    block_log2 = 0;
    while ((2u << block_log2) <= parts.block) ++block_log2;
    const int64_t elements = out * in, blocks = ceil_div(elements, parts.block);
    const auto take = [&](Tensor& to, const void* handle, at::ScalarType type, int64_t count, const char* name) {
      TORCH_CHECK(handle != nullptr, "4-bit weight without ", name);
      to = tensor_of(handle);
      TORCH_CHECK(to.scalar_type() == type && to.is_contiguous() && to.numel() == count, name, " is ", to.scalar_type(),
                  " of ", to.numel(), " values; ", type, " of ", count, " is needed");
      TORCH_CHECK(aligned16(to), name, " does not begin at a multiple of 16 bytes");
      TORCH_CHECK(!packed.defined() || to.device() == packed.device(), name, " is on ", to.device());
    };
    take(packed, parts.packed, at::kByte, ceil_div(elements, 2), "packed values");
    take(values, parts.values, at::kFloat, 16, "code book");
    if (scales == TAILOR_SCALES_NESTED) {
      TORCH_CHECK(nested_block > 0, "nested blocks of no scale");
      take(codes, parts.codes, at::kByte, blocks, "scale codes");
      take(map, parts.map, at::kFloat, 256, "scale map");
      take(absmax, parts.absmax, at::kFloat, ceil_div(blocks, nested_block), "nested scales");
    } else {
      take(absmax, parts.absmax, at::kFloat, blocks, "scales");
    }
    if (scales == TAILOR_SCALES_AFFINE) take(minimum, parts.minimum, at::kFloat, blocks, "minima");
  }

  // Whether a product reads it as it lies: a scale for whole pieces of 64 of a row, no minimum, places in 32 bits.
  bool is_direct() const {
    const bool nested_evenly = scales != TAILOR_SCALES_NESTED || (nested_block & (nested_block - 1)) == 0;
    return scales != TAILOR_SCALES_AFFINE && nested_evenly && block_log2 >= 6 && in % 64 == 0;
  }

  TailorPart part() const {
    const auto floats = [](const Tensor& t) { return t.defined() ? t.data_ptr<float>() : nullptr; };
    TailorPart part{};
    part.packed = packed.data_ptr<uint8_t>();
    part.codes = codes.defined() ? codes.data_ptr<uint8_t>() : nullptr;
    part.map = floats(map);
    part.absmax = floats(absmax);
    part.minimum = floats(minimum);
    part.values = floats(values);
    part.elements = static_cast<unsigned long long>(out * in);
    part.block_log2 = block_log2;
    part.nested_block = nested_block;
    part.nested_log2 = TAILOR_NO_LOG2;
    for (uint32_t log2 = 0; log2 < 32; ++log2) {
      if (nested_block == 1u << log2) part.nested_log2 = log2;
    }
    part.scales = scales;
    part.rounding = rounding;
    part.offset = offset;
    return part;
  }
};

using Pointer = c10::intrusive_ptr<FourBit>;

// LoRA of one layer of a group; none where the rank is 0.
struct Term {
  size_t place = 0;  // of A among the arguments; B follows
  int64_t rank = 0;
  double scale = 0;
};

// Rows of x from which on weights are dequantised for a product of libtorch's, and of W in a block of our own kernel's.
constexpr int64_t FEW_ROWS = TAILOR_FEW_ROWS;

struct Group : torch::CustomClassHolder {
  std::vector<Pointer> weights;
  std::vector<Term> terms;  // one for each weight
  bool inference = false;   // nobody goes back: few rows need no dequantised weight
  int64_t out = 0, in = 0;

  Group(const void* const* handles, size_t count) {
    TORCH_CHECK(count >= 1 && count <= TAILOR_MAX_PARTS, count, " weights in one launch; the limit is ", TAILOR_MAX_PARTS);
    for (size_t i = 0; i < count; ++i) weights.push_back(*static_cast<const Pointer*>(handles[i]));
    in = weights[0]->in;
    for (const Pointer& weight : weights) {
      TORCH_CHECK(weight->in == in, "weights of one group take ", in, " and ", weight->in, " features");
      TORCH_CHECK(weight->packed.device() == weights[0]->packed.device(), "weights of one group are on two devices");
      out += weight->out;
    }
    terms.resize(count);
  }

  // The weights one after the other in one launch, and its blocks. `takes` says of each how many blocks it has, and how far
  // behind its own place in the output the next one's begins.
  template <class F>
  std::pair<TailorParts, int64_t> laid_out(F&& takes) const {
    TailorParts parts{};
    parts.count = static_cast<unsigned>(weights.size());
    int64_t blocks = 0, begins = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      parts.part[i] = weights[i]->part();
      parts.part[i].first_block = static_cast<unsigned>(blocks);
      parts.part[i].begins = static_cast<unsigned long long>(begins);
      const auto [own, further] = takes(*weights[i]);
      blocks += own;
      begins += further;
    }
    return {parts, blocks};
  }

  // [out, in]; from the caching allocator, which hands the same memory to the next layer in the order of the stream.
  Tensor dequantize(at::ScalarType dtype) const {
    TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "4-bit weights compute in float32 or bfloat16, not ", dtype);
    const Tensor& packed = weights[0]->packed;
    Tensor result = at::empty({out, in}, packed.options().dtype(dtype));
    const auto [parts, blocks] = laid_out([&](const FourBit& weight) {
      const int64_t elements = weight.out * in;
      return std::make_pair(ceil_div(elements, BLOCK_ELEMENTS), elements);
    });
    void* const to = result.data_ptr();
    launch(packed, "tailor_dequantize_" + type_name(result), blocks, 256, parts, to);
    return result;
  }

  int64_t ranks() const {
    int64_t sum = 0;
    for (const Term& term : terms) sum += term.rank;
    return sum;
  }

  bool is_direct(const Tensor& x) const {
    bool all = x.scalar_type() == at::kBFloat16 && x.size(0) >= 1 && x.size(0) <= FEW_ROWS && x.is_contiguous() && aligned16(x);
    for (const Pointer& weight : weights) all = all && weight->is_direct();
    return all;
  }

  // y = x·Wᵀ or y += x·Wᵀ where `is_direct`: x [N, in], y [N, out].
  void multiply(const Tensor& x, const Tensor& y, bool add) const {
    const int64_t rows = x.size(0), of_w = rows <= 8 ? 16 : 32;
    TORCH_CHECK(is_direct(x) && x.size(1) == in, "no product of x ", x.sizes(), " with weights as they lie");
    TORCH_CHECK(y.scalar_type() == at::kBFloat16 && y.is_contiguous() && y.size(0) == rows && y.size(1) == out,
                "a product of [", rows, ", ", out, "] into ", y.sizes());
    const auto [parts, blocks] = laid_out([&](const FourBit& weight) {
      return std::make_pair(ceil_div(weight.out, of_w), weight.out);
    });
    const char* const kernel = rows <= 8 ? "tailor_product_8" : rows <= 16 ? "tailor_product_16" : "tailor_product_32";
    launch(x, kernel, blocks, 256, parts, x.data_ptr(), y.data_ptr(), uint32_t(rows), uint32_t(in), uint32_t(out),
           uint32_t(add));
  }
};

// left·right as f32: tensor cores take bf16 and add in f32; only a GPU gives that sum unrounded.
Tensor product_f32(const Tensor& left, const Tensor& right) {
  if (left.scalar_type() == at::kFloat) return at::mm(left, right);
  if (left.is_cuda()) return at::mm(left, right, at::kFloat);
  return at::mm(left.to(at::kFloat), right.to(at::kFloat));
}

// All layers that take one input, with their LoRA: one dequantisation and one product for all their weights, one product
// for all A, and one place in which the gradient of x is summed up. What LoRA adds is added where the product lies, and
// its parameters are rounded to the type of x. Saved are x, x·Aᵀ and the parameters.
struct Project : torch::autograd::Function<Project> {
  // All A in the type of the product, one below the other [ΣR, in].
  static Tensor stacked(const Group& group, const variable_list& pairs, at::ScalarType type) {
    std::vector<Tensor> all;
    for (const Term& term : group.terms) {
      if (term.rank > 0) all.push_back(pairs[term.place].to(type));
    }
    return all.size() == 1 ? all[0] : at::cat(all);
  }

  // `arguments`: A and B of each layer that has some.
  static variable_list forward(AutogradContext* ctx, const Tensor& x, at::TensorList arguments,
                               c10::intrusive_ptr<Group> group) {
    ctx->set_materialize_grads(false);
    const auto type = x.scalar_type();
    const Tensor flat = x.reshape({-1, group->in});  // [N, in]
    variable_list saved(arguments.begin(), arguments.end());
    const auto product = [&] {
      if (!group->inference || !group->is_direct(flat)) return at::mm(flat, group->dequantize(type).t());
      const Tensor direct = at::empty({flat.size(0), group->out}, flat.options());
      group->multiply(flat, direct, false);
      return direct;
    };
    Tensor h;  // [N, ΣR]
    if (!saved.empty()) {
      h = taped({flat.size(0), group->ranks()}, type, [&] { return at::mm(flat, stacked(*group, saved, type).t()); });
    }
    Tensor y;  // [N, Σout], made for the first one that asks
    auto shape = x.sizes().vec();
    variable_list results;
    int64_t column = 0, ranks = 0;
    for (size_t i = 0; i < group->weights.size(); ++i) {
      const int64_t out = group->weights[i]->out, from = column, rank = ranks;
      const Term& term = group->terms[i];
      column += out;
      ranks += term.rank;
      shape.back() = out;
      results.push_back(taped_value(shape, x, [&] {
        if (!y.defined()) y = product();
        Tensor own = y.narrow(1, from, out);
        if (term.rank > 0) own.addmm_(h.narrow(1, rank, term.rank), saved[term.place + 1].to(type).t(), 1, term.scale);
        // A tensor of its own over the same memory: for autograd it is no view of what the next layer changes.
        return own.view(shape).variable_data();
      }));
    }
    saved.push_back(flat);
    saved.push_back(h);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["group"] = c10::IValue::make_capsule(group);
    ctx->saved_data["shape"] = x.sizes();
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto group = c10::static_intrusive_pointer_cast<Group>(ctx->saved_data["group"].toCapsule());
    variable_list saved = ctx->get_saved_variables();
    const Tensor h = saved.back();
    saved.pop_back();
    const Tensor flat = saved.back();
    saved.pop_back();
    const auto type = flat.scalar_type();
    // One gradient for x, one for each argument, none for the group.
    variable_list results(saved.size() + 2);
    const bool wants_x = ctx->needs_input_grad(0), has_lora = !saved.empty();
    Tensor gx, gh;  // [N, in], [N, ΣR] with the scale
    if (has_lora) gh = at::zeros({flat.size(0), h.size(1)}, flat.options());
    Tensor weights;
    if (wants_x) weights = group->dequantize(type);
    bool wants_a = false;
    int64_t row = 0, ranks = 0;
    for (size_t i = 0; i < group->weights.size(); ++i) {
      const int64_t out = group->weights[i]->out;
      const Term& term = group->terms[i];
      const int64_t first = row, rank = ranks;
      row += out;
      ranks += term.rank;
      if (!gradients[i].defined()) continue;
      const Tensor g = gradients[i].reshape({-1, out});
      gradients[i].reset();
      if (wants_x) {
        const Tensor w = weights.narrow(0, first, out);
        if (gx.defined()) {
          gx.addmm_(g, w);
        } else {
          gx = at::mm(g, w);
        }
      }
      if (term.rank == 0) continue;
      gh.narrow(1, rank, term.rank).copy_(at::mm(g, saved[term.place + 1].to(type)).mul_(term.scale));
      if (ctx->needs_input_grad(term.place + 2)) {
        results[term.place + 2] = product_f32(g.t(), h.narrow(1, rank, term.rank)).mul_(term.scale);  // [out, R]
      }
      wants_a = wants_a || ctx->needs_input_grad(term.place + 1);
    }
    weights.reset();
    if (wants_a) {
      const Tensor ga = product_f32(gh.t(), flat);  // [ΣR, in]
      ranks = 0;
      for (const Term& term : group->terms) {
        if (term.rank > 0 && ctx->needs_input_grad(term.place + 1)) {
          results[term.place + 1] = ga.narrow(0, ranks, term.rank);
        }
        ranks += term.rank;
      }
    }
    if (gx.defined()) {
      if (has_lora) gx.addmm_(gh, stacked(*group, saved, type));
      results[0] = gx.view(ctx->saved_data["shape"].toIntVector());
    }
    return results;
  }
};

// LoRA by itself, where its input is not the layer's own (dropout), or something comes between.
struct Lora : torch::autograd::Function<Lora> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b,
                        double scale) {
    const int64_t in = a.size(1), out = b.size(0);
    const auto type = x.scalar_type();
    Tensor h = at::mm(x.reshape({-1, in}), a.to(type).t());  // [N, R]
    ctx->save_for_backward({x, a, b, h});
    ctx->saved_data["scale"] = scale;
    return at::addmm(y.reshape({-1, out}), h, b.to(type).t(), 1, scale).view(y.sizes());
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &a = saved[1], &b = saved[2], &h = saved[3];
    const double scale = ctx->saved_data["scale"].toDouble();
    const auto type = x.scalar_type();
    const Tensor& gy = gradients[0];
    const Tensor g = gy.reshape({-1, b.size(0)});  // [N, out]
    Tensor gx, ga, gb;
    if (ctx->needs_input_grad(3)) {
      gb = product_f32(g.t(), h).mul_(scale);  // [out, R]
    }
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      const Tensor gh = at::mm(g, b.to(type)).mul_(scale);  // [N, R]
      if (ctx->needs_input_grad(2)) {
        ga = product_f32(gh.t(), x.reshape({-1, a.size(1)}));  // [R, in]
      }
      if (ctx->needs_input_grad(1)) {
        gx = at::mm(gh, a.to(type)).view(x.sizes());
      }
    }
    return {ctx->needs_input_grad(0) ? gy : Tensor(), gx, ga, gb, Tensor()};
  }
};

}  // namespace

extern "C" {

int32_t tailor_device_weight(const TailorFourBit* parts, void** weight) {
  return shielded([&] { *weight = new Pointer(c10::make_intrusive<FourBit>(*parts)); });
}

void tailor_device_weight_free(void* weight) { delete static_cast<Pointer*>(weight); }

int32_t tailor_device_dequantize(const void* const* weights, size_t count, int32_t dtype, void** result) {
  return shielded([&] {
    *result = new_handle(Group(weights, count).dequantize(dtype == TAILOR_F32 ? at::kFloat : at::kBFloat16));
  });
}

int32_t tailor_device_project(const void* x, const void* const* weights, const TailorFactors* factors, size_t count,
                              void** results) {
  return shielded([&] {
    auto group = c10::make_intrusive<Group>(weights, count);
    group->inference = !at::GradMode::is_enabled();
    const Tensor& input = tensor_of(x);
    TORCH_CHECK(input.size(-1) == group->in, "input has ", input.size(-1), " features, the weight takes ", group->in);
    std::vector<Tensor> arguments;
    for (size_t i = 0; i < count; ++i) {
      if (factors[i].a == nullptr) continue;
      const Tensor &a = tensor_of(factors[i].a), &b = tensor_of(factors[i].b);
      const int64_t out = group->weights[i]->out;
      TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == group->in && b.size(0) == out && a.size(0) == b.size(1),
                  "A ", a.sizes(), " and B ", b.sizes(), " do not fit a layer from ", group->in, " to ", out);
      group->terms[i] = {arguments.size(), a.size(0), factors[i].scale};
      arguments.push_back(a);
      arguments.push_back(b);
    }
    variable_list made = Project::apply(input, at::TensorList(arguments), group);
    for (size_t i = 0; i < count; ++i) results[i] = new_handle(std::move(made[i]));
  });
}

int32_t tailor_device_is_direct(const void* weight) {
  return (*static_cast<const Pointer*>(weight))->is_direct() ? 1 : 0;
}

int32_t tailor_step_product(const void* x, const void* const* weights, size_t count, int32_t add, void* y) {
  return shielded([&] { Group(weights, count).multiply(tensor_of(x), tensor_of(y), add != 0); });
}

int32_t tailor_device_lora(const void* y, const void* x, const void* a, const void* b, double scale, void** result) {
  return shielded([&] {
    TORCH_CHECK(tensor_of(y).scalar_type() == tensor_of(x).scalar_type(), "LoRA adds ", tensor_of(x).scalar_type(), " to ",
                tensor_of(y).scalar_type());
    *result = new_handle(Lora::apply(tensor_of(y), tensor_of(x), tensor_of(a), tensor_of(b), scale));
  });
}
}
