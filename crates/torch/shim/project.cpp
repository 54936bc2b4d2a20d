// Projections of one input: y_i = x·W_iᵀ + b_i + s_i·(x·A_iᵀ)·B_iᵀ, with W_i dense or in 4 bits (QLoRA, arXiv 2305.14314
// eq. 5; LoRA, arXiv 2106.09685 eq. 3).
//
// Where x is in bf16 and products are made in f32 for want of others, many rows go by products of integers with the packed weight
// instead (TailorWeightOps::multiply). Where the processor multiplies bf16 they go by sums with the packed weight, of which LoRA is a
// term (TailorWeightOps::sums): what is rounded is the whole sum.
//
// Taken together they bring x into the type of the product once, make all x·A_iᵀ in one product, and add up the gradient
// of x in one place. Otherwise a 4-bit weight is rebuilt in scratch for each pass and never kept; saved are x, x·Aᵀ, A and B. x·Wᵀ is
// rounded to x's type there, then LoRA is added. What is on a tape (tape.h) is not made again: the outputs and x·Aᵀ.
//
// LoRA's own products are of the type that x·Wᵀ is made in. Where that is bf16, A, B and their gradients stay in f32: their
// factors are rounded for a product, which adds up in f32, as under the peers' mixed precision.

#include "support.h"
#include "tape.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>
#include <vector>

namespace tailor {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows whose products are made at once for the gradients of A and B.
constexpr int64_t kRows = 512;
// Rows from which on products with packed weights are worth it.
constexpr int64_t kMany = 32;

// One of the projections. Tensors that may be trained are arguments of the function below; here stands which ones.
struct Part {
  const void* packed = nullptr;  // a 4-bit weight, or
  Tensor dense;                  // [out, in], a constant
  int64_t out = 0;
  int bias = -1, a = -1, b = -1;  // places among the arguments
  double scale = 0;
  int64_t rank = 0;
};

struct Group : torch::CustomClassHolder {
  const TailorWeightOps* ops;
  int64_t in;
  std::vector<Part> parts;

  Group(const TailorWeightOps* ops, int64_t in) : ops(ops), in(in) {}
  ~Group() override {
    for (const Part& part : parts) {
      if (part.packed != nullptr) ops->release(part.packed);
    }
  }

  int64_t ranks() const {
    int64_t sum = 0;
    for (const Part& part : parts) sum += part.rank;
    return sum;
  }

  // x·Wᵀ, or (`back`) x·W, of x [N, in or out] in `dtype`, which is that of the product and not `of`, the caller's own, where
  // there is no fast one of that.
  Tensor product(const Tensor& x, const Part& part, bool back, at::ScalarType of) const {
    const auto dtype = x.scalar_type();
    if (dtype != of && dtype == at::kFloat && x.size(0) >= kMany && part.packed != nullptr &&
        ops->multiplies(part.packed, back)) {
      const Tensor rows = x.contiguous();
      Tensor y = at::empty({x.size(0), back ? in : part.out}, x.options());
      const int32_t failed =
          ops->multiply(part.packed, rows.const_data_ptr<float>(), x.size(0), back, y.mutable_data_ptr<float>());
      TORCH_CHECK(failed == 0, "rows could not be multiplied with a 4-bit weight");
      return y;
    }
    const Tensor w = weight(part, dtype);
    return at::mm(x, back ? w : w.t());
  }

  // Whether sums with packed weights make these projections of x.
  bool has_sums(const Tensor& x, at::ScalarType type) const {
    if (!x.is_cpu() || x.scalar_type() != at::kBFloat16 || type != at::kBFloat16 || x.size(0) < kMany) return false;
    return std::all_of(parts.begin(), parts.end(),
                       [&](const Part& part) { return part.packed != nullptr && ops->has_sums(part.packed); });
  }

  // All projections of x [N, in], with h = x·Aᵀ [N, ΣR].
  std::vector<Tensor> sums(const Tensor& x, const Tensor& h, const variable_list& arguments) const {
    const Tensor rows = side_by_side(x);
    std::vector<Tensor> results, factors;
    std::vector<std::array<TailorTerm, 2>> terms(parts.size());
    std::vector<TailorSum> all;
    int64_t first = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Part& part = parts[i];
      terms[i][0] = term(part.packed, rows);
      if (part.rank > 0) {
        const Tensor b = arguments[part.b];
        factors.push_back((part.scale == 1.0 ? b : b * part.scale).to(at::kBFloat16).contiguous());
        terms[i][1] = term(factors.back(), h.narrow(1, first, part.rank));
      }
      first += part.rank;
      const std::array<int64_t, 2> shape = {x.size(0), part.out};
      const bool biased = part.bias >= 0;
      results.push_back(biased ? arguments[part.bias].to(at::kBFloat16).expand(shape).clone(at::MemoryFormat::Contiguous)
                               : at::empty(shape, x.options()));
      all.push_back({terms[i].data(), part.rank > 0 ? 2u : 1u, part.out, biased, results.back().mutable_data_ptr()});
    }
    add_up(all, x.size(0), false);
    return results;
  }

  // x·W of a projection's gradient, and gh·A where `a` [ΣR, in] is defined, added to gx where that is.
  void sum_back(const Part& part, const Tensor& gradient, const Tensor& gh, const Tensor& a, Tensor& gx) const {
    const Tensor rows = side_by_side(gradient);
    const bool add = gx.defined();
    if (!add) gx = at::empty({rows.size(0), in}, rows.options());
    std::array<TailorTerm, 2> terms{term(part.packed, rows)};
    if (a.defined()) terms[1] = term(a, gh);
    add_up({{terms.data(), a.defined() ? 2u : 1u, in, add, gx.mutable_data_ptr()}}, rows.size(0), true);
  }

  void add_up(const std::vector<TailorSum>& all, int64_t rows, bool back) const {
    TORCH_CHECK(ops->sums(all.data(), all.size(), rows, back) == 0, "rows could not be multiplied with a 4-bit weight");
  }

  static Tensor side_by_side(const Tensor& x) { return x.stride(1) == 1 && x.stride(0) >= x.size(1) ? x : x.contiguous(); }
  static TailorTerm term(const void* packed, const Tensor& x) {
    return {packed, nullptr, x.const_data_ptr(), x.stride(0), x.size(1)};
  }
  static TailorTerm term(const Tensor& dense, const Tensor& x) {
    return {nullptr, dense.const_data_ptr(), x.const_data_ptr(), x.stride(0), x.size(1)};
  }

  // [out, in] in `dtype`; what is not there already lies in scratch until the next call on this thread.
  Tensor weight(const Part& part, at::ScalarType dtype) const {
    if (part.packed == nullptr) {
      return part.dense.scalar_type() == dtype ? part.dense : scratch_of({part.out, in}, dtype).copy_(part.dense);
    }
    TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "4-bit weights compute in float32 or bfloat16, not ", dtype);
    Tensor w = scratch_of({part.out, in}, dtype);
    const int32_t kind = dtype == at::kFloat ? TAILOR_F32 : TAILOR_BF16;
    char* data = static_cast<char*>(w.data_ptr());
    const int64_t elements = part.out * in, task = ops->task(part.packed);
    const int64_t size = static_cast<int64_t>(c10::elementSize(dtype));
    std::atomic<bool> failed{false};
    // libtorch's own threads: another pool's would find the processors taken by these, which spin after each product.
    at::parallel_for(0, (elements + task - 1) / task, 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * task, last = std::min(end * task, elements);
      if (ops->dequantize(part.packed, data + first * size, kind, first, last) != 0) failed = true;
    });
    TORCH_CHECK(!failed, "weight could not be dequantised");
    return w;
  }
};

// All A, one below the other [ΣR, in].
Tensor stacked(const Group& group, const variable_list& arguments) {
  std::vector<Tensor> all;
  for (const Part& part : group.parts) {
    if (part.rank > 0) all.push_back(arguments[part.a]);
  }
  return all.size() == 1 ? all[0] : at::cat(all);
}

// gᵀ·x·scale [R, width] in f32, for few columns of g: the gradient of A, or the other way round that of B. In f32 libtorch
// is worst at products with few rows of output, so there it is xᵀ·g. In bf16 a piece's sum is rounded once.
Tensor few_by_many(const Tensor& g, const Tensor& x, at::ScalarType type, double scale) {
  const bool turned = type == at::kFloat;
  const auto f32 = x.options().dtype(at::kFloat);
  Tensor sum = turned ? at::zeros({x.size(1), g.size(1)}, f32) : at::zeros({g.size(1), x.size(1)}, f32);
  for (int64_t first = 0; first < x.size(0); first += kRows) {
    const int64_t count = std::min(kRows, x.size(0) - first);
    const Tensor some = g.narrow(0, first, count).to(type), many = x.narrow(0, first, count).to(type);
    if (turned) {
      sum.addmm_(many.t(), some);
    } else {
      sum.add_(at::mm(some.t(), many));
    }
  }
  if (scale != 1.0) sum.mul_(scale);
  return turned ? sum.t() : sum;
}

struct Project : torch::autograd::Function<Project> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, at::TensorList arguments,
                               c10::intrusive_ptr<Group> group) {
    ctx->set_materialize_grads(false);
    const auto type = product_type(x);
    const Tensor flat = x.reshape({-1, group->in});  // [N, in]
    variable_list saved(arguments.begin(), arguments.end());
    Tensor converted;
    // Not needed where everything is taken from a tape.
    const auto in_type = [&]() -> const Tensor& {
      if (!converted.defined()) converted = flat.to(type);
      return converted;
    };
    Tensor h;  // [N, ΣR]
    if (group->ranks() > 0) {
      h = taped({flat.size(0), group->ranks()}, type,
                [&] { return at::mm(in_type(), stacked(*group, saved).to(type).t()); });
    }
    auto shape = x.sizes().vec();
    variable_list results;
    int64_t column = 0;
    const bool summed = group->has_sums(flat, type);
    std::vector<Tensor> sums;  // made together when the first is asked for
    for (size_t i = 0; i < group->parts.size(); ++i) {
      const Part& part = group->parts[i];
      const int64_t first = column;
      column += part.rank;
      shape.back() = part.out;
      results.push_back(taped_value(shape, x, [&] {
        if (summed) {
          if (sums.empty()) sums = group->sums(flat, h, saved);
          return std::exchange(sums[i], Tensor()).view(shape);
        }
        Tensor y;  // [N, out]
        if (part.bias >= 0 && type == x.scalar_type()) {
          y = at::addmm(saved[part.bias].to(type), in_type(), group->weight(part, type).t());
        } else {
          y = group->product(in_type(), part, false, x.scalar_type());
          if (part.bias >= 0) y.add_(saved[part.bias]);
        }
        if (part.rank > 0) {
          const Tensor own = h.narrow(1, first, part.rank), b = saved[part.b].to(type).t();
          if (x.scalar_type() == type) {
            y.addmm_(own, b, 1, part.scale);
          } else {
            // Rounded before LoRA is added, as where the sum is made apart: a batch of many adapters gives the same.
            y = y.to(x.scalar_type());
            add_scaled_(y, at::mm(own, b), part.scale);
          }
        }
        return y.to(x.scalar_type()).view(shape);
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
    auto group = c10::static_intrusive_pointer_cast<Group>(ctx->saved_data["group"].toCapsule());
    variable_list saved = ctx->get_saved_variables();
    const Tensor h = saved.back();
    saved.pop_back();
    const Tensor flat = saved.back();
    saved.pop_back();
    const auto type = product_type(flat);
    const int64_t ranks = group->ranks(), rows = flat.size(0);
    const bool wants_x = ctx->needs_input_grad(0);
    // One gradient for x, one for each argument, none for the group.
    variable_list results(saved.size() + 2);
    const auto wanted = [&](int place) { return place >= 0 && ctx->needs_input_grad(place + 1); };
    bool wants_a = false;
    for (const Part& part : group->parts) wants_a = wants_a || wanted(part.a);
    const bool summed = group->has_sums(flat, type);
    size_t last = 0;  // that has a gradient
    for (size_t i = 0; i < group->parts.size(); ++i) {
      if (gradients[i].defined()) last = i;
    }
    Tensor gx;  // [N, in]
    Tensor gh;  // [N, ΣR], with the scale
    if (ranks > 0) gh = at::zeros({rows, ranks}, flat.options().dtype(type));
    int64_t column = 0;
    for (size_t i = 0; i < group->parts.size(); ++i) {
      const Part& part = group->parts[i];
      const int64_t own = column;
      column += part.rank;
      if (!gradients[i].defined()) continue;
      const Tensor gy = gradients[i].reshape({-1, part.out}).to(type);
      gradients[i].reset();
      if (wanted(part.bias)) results[part.bias + 1] = gy.sum(0, false, at::kFloat).to(saved[part.bias].scalar_type());
      if (part.rank > 0) {
        if (wanted(part.b)) {
          const Tensor of_b = few_by_many(h.narrow(1, own, part.rank), gy, type, part.scale);  // [R, out]
          results[part.b + 1] = of_b.t().contiguous();
        }
        Tensor of_h = gh.narrow(1, own, part.rank);
        of_h.copy_(at::mm(gy, saved[part.b].to(type))).mul_(part.scale);
      }
      if (!wants_x) continue;
      if (summed) {
        const bool with_lora = ranks > 0 && i == last;
        group->sum_back(part, gy, gh, with_lora ? stacked(*group, saved).to(type).contiguous() : Tensor(), gx);
      } else if (gx.defined() && type == flat.scalar_type()) {
        gx.addmm_(gy, group->weight(part, type));
      } else if (gx.defined()) {
        gx.add_(group->product(gy, part, true, flat.scalar_type()));
      } else {
        gx = group->product(gy, part, true, flat.scalar_type());
      }
    }
    if (wants_a) {
      const Tensor ga = few_by_many(gh, flat, type, 1.0);  // [ΣR, in]
      column = 0;
      for (const Part& part : group->parts) {
        if (wanted(part.a)) results[part.a + 1] = ga.narrow(0, column, part.rank).contiguous();
        column += part.rank;
      }
    }
    if (wants_x && gx.defined()) {
      if (ranks > 0 && !summed) gx.addmm_(gh, stacked(*group, saved).to(type));
      results[0] = gx.to(flat.scalar_type()).view(ctx->saved_data["shape"].toIntVector());
    }
    return results;
  }
};

// ---- LoRA by itself ------------------------------------------------------------------------------------------------

// Where x is not the projection's own (dropout), or something comes between. Saves x in its own type and x·Aᵀ [.., R].
// `by_tape`: nobody but this sum looks at y, so a tape has the sum in its place.
struct Lora : torch::autograd::Function<Lora> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b,
                        double scale, bool by_tape) {
    auto shape = x.sizes().vec();
    shape.back() = a.size(0);
    const auto inner = [&] { return at::linear(x.to(a.scalar_type()), a); };  // [.., R]
    const Tensor h = by_tape ? taped(shape, a.scalar_type(), inner) : inner();
    ctx->save_for_backward({x, a, b, h});
    ctx->saved_data["scale"] = scale;
    const auto sum = [&] { return at::add(y, at::linear(h, b), scale).to(y.scalar_type()); };
    return by_tape ? taped_value(y.sizes(), y, sum) : sum();
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &a = saved[1], &b = saved[2], &h = saved[3];
    const double scale = ctx->saved_data["scale"].toDouble();
    const Tensor& gy = gradients[0];
    const int64_t in = a.size(1), out = b.size(0), rank = a.size(0);
    Tensor g = gy.to(b.scalar_type()).reshape({-1, out}).mul(scale);  // [N, out]
    Tensor gx, ga, gb;
    if (ctx->needs_input_grad(3)) {
      gb = at::mm(g.t(), h.reshape({-1, rank}));  // [out, R]
    }
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      Tensor gh = at::mm(g, b);  // [N, R]
      if (ctx->needs_input_grad(2)) {
        ga = at::mm(gh.t(), x.reshape({-1, in}).to(a.scalar_type()));  // [R, in]
      }
      if (ctx->needs_input_grad(1)) {
        gx = at::mm(gh, a).view(x.sizes()).to(x.scalar_type());
      }
    }
    return {ctx->needs_input_grad(0) ? gy : Tensor(), gx, ga, gb, Tensor(), Tensor()};
  }
};

}  // namespace
}  // namespace tailor

using namespace tailor;

static thread_local bool values_wanted = true;

extern "C" {

void tailor_want_values(int32_t wanted) { values_wanted = wanted != 0; }
int32_t tailor_values_wanted() { return values_wanted ? 1 : 0; }

int32_t tailor_project(const void* x, const TailorProjection* projections, size_t count, const TailorWeightOps* ops,
                       int64_t in, void** results) {
  return guarded([&] {
    const Tensor& input = tensor(x);
    TORCH_CHECK(input.dim() > 0 && input.size(-1) == in, "input has ", input.dim() > 0 ? input.size(-1) : 0,
                " features, the weight takes ", in);
    auto group = c10::make_intrusive<Group>(ops, in);
    std::vector<Tensor> arguments;
    const auto place = [&](const void* argument) {
      if (argument == nullptr) return -1;
      arguments.push_back(tensor(argument));
      return static_cast<int>(arguments.size()) - 1;
    };
    for (size_t i = 0; i < count; ++i) {
      const TailorProjection& given = projections[i];
      Part part;
      part.out = given.out;
      part.bias = place(given.bias);
      part.a = place(given.a);
      part.b = place(given.b);
      part.scale = given.scale;
      if (part.a >= 0) {
        const Tensor &a = arguments[part.a], &b = arguments[part.b];
        TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == in && b.size(0) == given.out && a.size(0) == b.size(1),
                    "A ", a.sizes(), " and B ", b.sizes(), " do not fit a layer from ", in, " to ", given.out);
        TORCH_CHECK(a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat, "A and B must be float32");
        part.rank = a.size(0);
      }
      if (given.packed != nullptr) {
        ops->retain(given.packed);
        part.packed = given.packed;
      } else {
        part.dense = tensor(given.dense);
      }
      group->parts.push_back(std::move(part));
    }
    variable_list made = Project::apply(input, at::TensorList(arguments), group);
    for (size_t i = 0; i < count; ++i) results[i] = handle(std::move(made[i]));
  });
}

int32_t tailor_lora(const void* y, const void* x, const void* a, const void* b, double scale, bool taped, void** result) {
  return guarded([&] {
    TORCH_CHECK(tensor(x).dim() > 0 && tensor(a).dim() == 2, "LoRA's input ", tensor(x).sizes(), " and A ", tensor(a).sizes());
    *result = handle(Lora::apply(tensor(y), tensor(x), tensor(a), tensor(b), scale, taped));
  });
}
}
