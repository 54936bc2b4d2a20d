#include "attention_blocks.h"

#include "attention.h"

#include <cstring>
#include <vector>

namespace tailor {
namespace {

// Whether a block product of small whole numbers comes out right.
bool multiplies() {
  constexpr int64_t m = 32, n = kPanel, k = 32;
  const auto a = [](int64_t i, int64_t l) { return static_cast<float>((7 * i + 3 * l) % 5 - 2); };
  const auto b = [](int64_t l, int64_t j) { return static_cast<float>((5 * l + j) % 7 - 3); };
  std::vector<Bits> rows(m * k), panel(k * n);
  std::vector<float> sums(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t l = 0; l < k; ++l) rows[i * k + l] = c10::BFloat16(a(i, l)).x;
  }
  for (int64_t l = 0; l < k; ++l) {
    for (int64_t j = 0; j < n; ++j) panel[l / 2 * 2 * n + 2 * j + l % 2] = c10::BFloat16(b(l, j)).x;
  }
  try {
    multiply(m, n, k, rows.data(), k, panel.data(), sums.data(), n, false);
    at::native::cpublas::brgemm_release();
  } catch (const std::exception&) {
    return false;
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t l = 0; l < k; ++l) sum += a(i, l) * b(l, j);
      if (sums[i * n + j] != sum) return false;
    }
  }
  return true;
}

// Whether there are block products that are worth it. libtorch says so of tiles alone; it makes them with AVX512-BF16 too.
bool has_block_products() {
  if (at::native::cpublas::could_pack(at::kBFloat16)) return true;
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") && multiplies();
#else
  return false;
#endif
}

}  // namespace

bool has_attention_blocks(const at::Tensor& x) {
  static const bool there = has_block_products();
  return there && x.is_cpu() && x.scalar_type() == at::kBFloat16 && x.size(3) % kStep == 0;
}

Rows rows_of(const at::Tensor& x, int64_t batch, int64_t head) {
  const auto* data = static_cast<const Bits*>(x.const_data_ptr());
  return {data + batch * x.stride(0) + head * x.stride(1), x.stride(2), x.size(2), x.size(3)};
}

void place_turned(const Rows& x, int64_t padded, Bits* to) {
  const int64_t pairs = x.width / 2;
  auto* out = reinterpret_cast<uint32_t*>(to);
  for (int64_t i = 0; i < padded; ++i) {
    uint32_t* column = out + i / kPanel * pairs * kPanel + i % kPanel;
    if (i < x.count) {
      const Bits* row = x.row(i);
      for (int64_t pair = 0; pair < pairs; ++pair) {
        std::memcpy(column + pair * kPanel, row + 2 * pair, sizeof(uint32_t));
      }
    } else {
      for (int64_t pair = 0; pair < pairs; ++pair) column[pair * kPanel] = 0;
    }
  }
}

TAILOR_VECTORS void interleave(const Bits* even, const Bits* odd, Bits* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    to[2 * j] = even[j];
    to[2 * j + 1] = odd[j];
  }
}
void place(const Rows& x, int64_t padded, Bits* to) {
  const std::vector<Bits> none(x.width);
  for (int64_t first = 0; first < x.width; first += kPanel) {
    const int64_t columns = std::min(kPanel, x.width - first);
    for (int64_t i = 0; i < padded; i += 2, to += 2 * columns) {
      const auto row = [&](int64_t i) { return (i < x.count ? x.row(i) : none.data()) + first; };
      interleave(row(i), row(i + 1), to, columns);
    }
  }
}

}  // namespace tailor
