#include "gemm.h"

#include <cstdlib>
#include <string>
#include <utility>

namespace cqa {
namespace {

template <int MR, int NV, int LANES, bool PACKED>
CQA_INLINE void tile(int64_t k_size, const float* a, int64_t stride, const float* panel, float* c,
                     int64_t ldc, const float* start, int64_t ld_start) {
  using Vec = V<float, LANES>;
  Vec sum[MR][NV];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) sum[i][j] = Vec{};
  for (int64_t k = 0; k < k_size; k++, panel += NV * LANES, a += PACKED ? 1 : stride) {
    Vec b[NV];
    for (int j = 0; j < NV; j++) b[j] = load<Vec>(panel + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < NV; j++) sum[i][j] += a[PACKED ? i * A_STRIDE : i] * b[j];
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) {
      const Vec from = start ? load<Vec>(start + i * ld_start + j * LANES) : Vec{};
      store(c + i * ldc + j * LANES, from + sum[i][j]);
    }
}

#if defined(__x86_64__)
struct Avx512 {
  static constexpr int rows = 12, lanes = 16;

  template <int MR, bool PACKED>
  __attribute__((target("avx512f,fma"))) static void run(int64_t k_size, const float* a,
                                                         int64_t stride, const float* panel,
                                                         float* c, int64_t ldc, const float* start,
                                                         int64_t ld_start) {
    tile<MR, 2, lanes, PACKED>(k_size, a, stride, panel, c, ldc, start, ld_start);
  }
};

struct Avx2 {
  static constexpr int rows = 6, lanes = 8;

  template <int MR, bool PACKED>
  __attribute__((target("avx2,fma"))) static void run(int64_t k_size, const float* a,
                                                      int64_t stride, const float* panel, float* c,
                                                      int64_t ldc, const float* start,
                                                      int64_t ld_start) {
    tile<MR, 2, lanes, PACKED>(k_size, a, stride, panel, c, ldc, start, ld_start);
  }
};
#endif

struct Plain {
  static constexpr int rows = 6, lanes = 8;

  template <int MR, bool PACKED>
  static void run(int64_t k_size, const float* a, int64_t stride, const float* panel, float* c,
                  int64_t ldc, const float* start, int64_t ld_start) {
    tile<MR, 2, lanes, PACKED>(k_size, a, stride, panel, c, ldc, start, ld_start);
  }
};

template <class Isa, bool PACKED, int... I>
const TileFunction* by_height(std::integer_sequence<int, I...>) {
  static const TileFunction functions[] = {Isa::template run<I + 1, PACKED>...};
  return functions;
}

template <class Isa>
Kernel kernel_of() {
  constexpr std::make_integer_sequence<int, Isa::rows> heights{};
  return {Isa::rows, 2 * Isa::lanes, by_height<Isa, true>(heights), by_height<Isa, false>(heights)};
}

// CQA_TILE=avx2 or plain asks for a narrower tile than the processor has, to test it.
Kernel choose_kernel() {
#if defined(__x86_64__)
  const char* variable = std::getenv("CQA_TILE");
  const std::string asked = variable ? variable : "avx512";
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (asked == "avx512" && __builtin_cpu_supports("avx512f")) return kernel_of<Avx512>();
  if (asked != "plain" && avx2) return kernel_of<Avx2>();
#endif
  return kernel_of<Plain>();
}

// Turns 8 rows, `ld` apart, into 8 columns, `stride` apart: three rounds of interleaving.
CQA_INLINE void transpose8(const float* from, int64_t ld, float* to, int64_t stride) {
  using Vec = V<float, 8>;
  using Index = V<int32_t, 8>;
  Vec r[8], s[8];
  for (int i = 0; i < 8; i++) r[i] = load<Vec>(from + i * ld);
  const Index low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
  for (int i = 0; i < 8; i += 2) {
    s[i] = __builtin_shuffle(r[i], r[i + 1], low);
    s[i + 1] = __builtin_shuffle(r[i], r[i + 1], high);
  }
  const Index first = {0, 1, 8, 9, 4, 5, 12, 13}, second = {2, 3, 10, 11, 6, 7, 14, 15};
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = __builtin_shuffle(s[i + j], s[i + j + 2], first);
      r[i + 2 * j + 1] = __builtin_shuffle(s[i + j], s[i + j + 2], second);
    }
  const Index left = {0, 1, 2, 3, 8, 9, 10, 11}, right = {4, 5, 6, 7, 12, 13, 14, 15};
  for (int j = 0; j < 4; j++) {
    store(to + j * stride, __builtin_shuffle(r[j], r[j + 4], left));
    store(to + (j + 4) * stride, __builtin_shuffle(r[j], r[j + 4], right));
  }
}

// One panel whose source is contiguous along k.
CQA_CLONES void pack_panel_transposed(const float* from, int64_t ld, int64_t k_size, int columns,
                                      int width, float* to) {
  for (int j = 0; j < width; j += 8) {
    int64_t k = 0;
    if (j + 8 <= columns)
      for (; k + 8 <= k_size; k += 8) transpose8(from + j * ld + k, ld, to + k * width + j, width);
    for (; k < k_size; k++)
      for (int i = j; i < j + 8; i++) to[k * width + i] = i < columns ? from[i * ld + k] : 0.0f;
  }
}

// One panel whose source is contiguous along the columns.
void pack_panel_straight(const float* from, int64_t ld, int64_t k_size, int columns, int width,
                         float* to) {
  if (columns == width) {
    for (int64_t k = 0; k < k_size; k++) copy_panel_row(from + k * ld, width, to + k * width);
    return;
  }
  for (int64_t k = 0; k < k_size; k++, to += width, from += ld) {
    std::memcpy(to, from, columns * sizeof(float));
    std::fill(to + columns, to + width, 0.0f);
  }
}

}  // namespace

const Kernel& best_kernel() {
  static const Kernel kernel = choose_kernel();
  return kernel;
}

float* scratch(Scratch which, size_t size) {
  thread_local std::vector<float> buffers[static_cast<int>(Scratch::COUNT)];
  auto& buffer = buffers[static_cast<int>(which)];
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

LeftTile left_tile(const Matrix& a, int64_t row, int64_t rows, int64_t k, int64_t k_size,
                   float* buffer) {
  if (a.column_stride != 1) return {a.at(row, k), a.column_stride, false};
  const auto next = reinterpret_cast<uintptr_t>(a.data + k);
  for (int64_t i = 0; i < rows; i++) {
    // a hint: beyond the last row it does no harm
    prefetch(next + (row + i + rows) * a.row_stride * sizeof(float), k_size);
    std::memcpy(buffer + i * A_STRIDE, a.at(row + i, k), k_size * sizeof(float));
  }
  return {buffer, 0, true};
}

void pack_b(const Matrix& b, int64_t k, int64_t k_size, int64_t column, int64_t columns,
            float* to) {
  const int width = best_kernel().columns;
  for (int64_t j = 0; j < columns; j += width, to += k_size * width) {
    const int valid = static_cast<int>(std::min<int64_t>(width, columns - j));
    const float* from = b.at(k, column + j);
    if (b.column_stride == 1)
      pack_panel_straight(from, b.row_stride, k_size, valid, width, to);
    else
      pack_panel_transposed(from, b.column_stride, k_size, valid, width, to);
  }
}

}  // namespace cqa
