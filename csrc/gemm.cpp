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
template <class T>
CQA_INLINE void transpose8(const T* from, int64_t ld, float* to, int64_t stride) {
  using Vec = V<float, 8>;
  using Index = V<int32_t, 8>;
  Vec r[8], s[8];
  for (int i = 0; i < 8; i++) r[i] = load_floats(from + i * ld);
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

// Rows and columns of a factor that become one panel, of `width` columns.
struct Panel {
  int64_t row, n_rows, column;
  int n_columns, width;
};

// From a source that is contiguous along its columns; what is missing of a panel becomes zeros.
template <class T>
CQA_INLINE void pack_transposed(const MatrixOf<T>& b, const Panel& p, float* to) {
  const T* from = b.at(p.row, p.column);
  const int64_t ld = b.column_stride;
  for (int j = 0; j < p.width; j += 8) {
    int64_t k = 0;
    if (j + 8 <= p.n_columns)
      for (; k + 8 <= p.n_rows; k += 8)
        transpose8(from + j * ld + k, ld, to + k * p.width + j, p.width);
    for (; k < p.n_rows; k++)
      for (int i = j; i < j + 8; i++)
        to[k * p.width + i] = i < p.n_columns ? widen(from[i * ld + k]) : 0.0f;
  }
}

// From a source that is contiguous along its rows.
template <class T>
CQA_INLINE void pack_straight(const MatrixOf<T>& b, const Panel& p, float* to) {
  const T* from = b.at(p.row, p.column);
  for (int64_t k = 0; k < p.n_rows; k++, to += p.width, from += b.row_stride) {
    int j = 0;
    for (; j + 8 <= p.n_columns; j += 8) store(to + j, load_floats(from + j));
    for (; j < p.width; j++) to[j] = j < p.n_columns ? widen(from[j]) : 0.0f;
  }
}

CQA_CLONES void pack_fp32(const Matrix& b, const Panel& p, float* to) {
  if (b.column_stride == 1)
    pack_straight(b, p, to);
  else
    pack_transposed(b, p, to);
}

CQA_CLONES void pack_bf16(const MatrixOf<Bf16>& b, const Panel& p, float* to) {
  if (b.column_stride == 1)
    pack_straight(b, p, to);
  else
    pack_transposed(b, p, to);
}

// Calls f(panel, to) for every panel of a block.
template <class F>
void for_panels(int64_t k, int64_t k_size, int64_t column, int64_t columns, float* to, const F& f) {
  const int width = best_kernel().columns;
  for (int64_t j = 0; j < columns; j += width, to += k_size * width)
    f(Panel{k, k_size, column + j, static_cast<int>(std::min<int64_t>(width, columns - j)), width},
      to);
}

// The panel's part of the tail, behind its `n_columns` columns of the first part and their zeros.
void add_tail_columns(const Weights& b, const Panel& p, int n_columns, float* to) {
  for (int64_t k = 0; k < p.n_rows; k++)
    for (int j = n_columns; j < p.n_columns; j++)
      to[k * p.width + j] = *b.tail.at(p.row + k, p.column + j - b.tail_column);
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
  for_panels(k, k_size, column, columns, to,
             [&](const Panel& panel, float* at) { pack_fp32(b, panel, at); });
}

void pack_b(const Weights& b, int64_t k, int64_t k_size, int64_t column, int64_t columns,
            float* to) {
  const auto pack_first = [&](const Panel& part, float* at) {
    if (b.bf16.data)
      pack_bf16(b.bf16, part, at);
    else
      pack_fp32(b.fp32, part, at);
  };
  for_panels(k, k_size, column, columns, to, [&](const Panel& panel, float* at) {
    const int64_t above = std::clamp<int64_t>(b.tail_row - k, 0, k_size);
    const auto before = static_cast<int>(
        std::clamp<int64_t>(b.tail_column - panel.column, 0, panel.n_columns));
    if (before == 0)
      return pack_fp32(
          b.tail, {k, k_size, panel.column - b.tail_column, panel.n_columns, panel.width}, at);
    if (above) pack_first({k, above, panel.column, before, panel.width}, at);
    if (above < k_size)
      pack_fp32(b.tail, {k + above - b.tail_row, k_size - above, panel.column, before, panel.width},
                at + above * panel.width);
    if (before < panel.n_columns) add_tail_columns(b, panel, before, at);
  });
}

CQA_CLONES void widen(const Bf16* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] = widen(from[i]);
}

}  // namespace cqa
