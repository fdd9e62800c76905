// C = start + A · B in fp32, every element's sum in one fixed order.
//
// An element's products are summed in blocks of about BLOCK_K, one after the other within a block.
// The order depends on the length of the sum alone: not on the other rows or columns, their number,
// or the threads. So a row has the same bits in any batch.
//
// The scheme is Goto's (Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication"): a block of B is packed into panels that stay in the second-level cache, rows of
// A pass by in the first-level cache, and a tile of C lives in registers. What is packed, and what
// becomes of a finished tile, the caller decides: dropout masks are applied on the way in.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

namespace cqa {

constexpr int64_t BLOCK_K = 128;      // products summed in registers before C is touched
constexpr int64_t MAX_BLOCK_K = 200;  // what an even division may make of it
constexpr int64_t BLOCK_N = 512;      // columns of B packed at a time: 256 KiB with BLOCK_K
constexpr int64_t A_STRIDE = MAX_BLOCK_K + 8;  // no power of two: rows fall into other cache sets

// Length of the blocks of a sum of `k_end` products: near BLOCK_K, without a short last one.
inline int64_t block_k(int64_t k_end) {
  const int64_t n = std::max<int64_t>(1, (k_end + BLOCK_K / 2) / BLOCK_K);
  return (k_end + 8 * n - 1) / (8 * n) * 8;
}

// Rows of A as a tile takes them: element (i, k) is data[i * A_STRIDE + k] where they were packed,
// and data[i + k * stride] where A's columns are contiguous and stay where they are.
struct LeftTile {
  const float* data;
  int64_t stride;
  bool packed;
};

// (k_size, rows of A, stride of A in place, panel of B, tile of C, ldc, start or null, its ld)
using TileFunction = void (*)(int64_t, const float*, int64_t, const float*, float*, int64_t,
                              const float*, int64_t);

// A register tile: how many rows and columns of C it holds, and one function for each height.
struct Kernel {
  int rows, columns;
  const TileFunction *packed, *in_place;

  void run(int64_t height, int64_t k_size, const LeftTile& a, const float* panel, float* c,
           int64_t ldc, const float* start, int64_t ld_start) const {
    (a.packed ? packed : in_place)[height - 1](k_size, a.data, a.stride, panel, c, ldc, start,
                                               ld_start);
  }
};

// The widest tile that this processor has registers for.
const Kernel& best_kernel();

template <class T>
struct MatrixOf {
  const T* data;
  int64_t row_stride, column_stride;  // one of them is 1

  const T* at(int64_t row, int64_t column) const {
    return data + row * row_stride + column * column_stride;
  }
};
using Matrix = MatrixOf<float>;

// Frozen weights as the right factor of a product: fp32, or bf16 that is widened as panels of it
// are packed. They may go on in a second part in fp32, below the first or to its right.
struct Weights {
  Matrix fp32;          // one of the two has data
  MatrixOf<Bf16> bf16;
  Matrix tail;
  int64_t tail_row, tail_column;  // where the tail begins; beyond the end where it does not
};

// A[row : row + rows, k : k + k_size] for a tile; `buffer` takes what has to be packed.
LeftTile left_tile(const Matrix& a, int64_t row, int64_t rows, int64_t k, int64_t k_size,
                   float* buffer);

// Copies B[k : k + k_size, column : column + columns] into panels, with zeros up to a whole panel.
void pack_b(const Matrix& b, int64_t k, int64_t k_size, int64_t column, int64_t columns, float* to);
void pack_b(const Weights& b, int64_t k, int64_t k_size, int64_t column, int64_t columns,
            float* to);

// Copies `n` numbers as floats.
void widen(const Bf16* from, int64_t n, float* to);

// Copies one row of a panel, 32 or 16 columns: a size that the compiler knows.
CQA_INLINE void copy_panel_row(const float* from, int width, float* to) {
  std::memcpy(to, from, 16 * sizeof(float));
  if (width == 32) std::memcpy(to + 16, from + 16, 16 * sizeof(float));
}

// Asks for `n` floats that are read soon: an address, as it may lie where no pointer may point.
CQA_INLINE void prefetch(uintptr_t address, int64_t n) {
  for (int64_t i = 0; i < n; i += 16)
    __builtin_prefetch(reinterpret_cast<const void*>(address + i * sizeof(float)));
}

CQA_INLINE void prefetch(const float* row, int64_t n) {
  prefetch(reinterpret_cast<uintptr_t>(row), n);
}

// What this thread keeps memory for from call to call.
enum class Scratch {
  LEFT,         // a tile of A
  RIGHT,        // panels of B
  EDGE,         // a tile of C that is cut off
  PRODUCT,      // a band of rows of a product, or its scores
  GATHERED,     // keys or values of a span, one after the other
  KEYS_T,       // factors of attention, packed
  KEYS,
  VALUES,
  HEAD,         // a band of rows of one head
  COUNT
};

float* scratch(Scratch which, size_t size);

struct Range {
  int64_t begin, end;
};

struct Target {
  float* c;
  int64_t ld;
  const float* start;  // added to the product; null is zero, may be c itself
  int64_t ld_start;
};

// Computes one range of rows and columns of C on the calling thread.
//   pack_b(k, k_size, column, columns, to) as above
template <class PackB>
void multiply_range(Range rows, Range columns, int64_t k_end, const Matrix& a,
                    const PackB& pack_b, const Target& target) {
  const Kernel& kernel = best_kernel();
  const int64_t block = block_k(k_end);
  float* buffer = scratch(Scratch::LEFT, kernel.rows * A_STRIDE);
  float* b = scratch(Scratch::RIGHT, MAX_BLOCK_K * BLOCK_N);
  float* edge = scratch(Scratch::EDGE, kernel.rows * kernel.columns);
  for (int64_t n = columns.begin; n < columns.end; n += BLOCK_N) {
    const int64_t n_size = std::min(BLOCK_N, columns.end - n);
    int64_t k = 0;
    do {  // once at least: a sum of no products is written too
      const int64_t k_size = std::min(block, k_end - k);
      pack_b(k, k_size, n, n_size, b);
      const float* start = k ? target.c : target.start;
      const int64_t ld_start = k ? target.ld : target.ld_start;
      for (int64_t m = rows.begin; m < rows.end; m += kernel.rows) {
        const int64_t height = std::min<int64_t>(kernel.rows, rows.end - m);
        const LeftTile left = left_tile(a, m, height, k, k_size, buffer);
        for (int64_t j = 0; j < n_size; j += kernel.columns) {
          const int64_t width = std::min<int64_t>(kernel.columns, n_size - j);
          float* c = target.c + m * target.ld + n + j;
          const float* from = start ? start + m * ld_start + n + j : nullptr;
          if (width == kernel.columns) {
            kernel.run(height, k_size, left, b + j * k_size, c, target.ld, from, ld_start);
            continue;
          }
          kernel.run(height, k_size, left, b + j * k_size, edge, kernel.columns, nullptr, 0);
          for (int64_t i = 0; i < height; i++)
            for (int64_t l = 0; l < width; l++)
              c[i * target.ld + l] =
                  (from ? from[i * ld_start + l] : 0.0f) + edge[i * kernel.columns + l];
        }
      }
      k += block;
    } while (k < k_end);
  }
}

// A factor B packed whole, for products of a few rows at a time.
class Packed {
 public:
  // Sums are cut into blocks of `block` products; `to` has room for size_of(k_end, n).
  Packed(const Matrix& b, int64_t k_end, int64_t n, int64_t block, float* to)
      : data_(to), k_end_(k_end), block_(block), padded_(padded(n)) {
    for (int64_t k = 0; k < k_end; k += block)
      pack_b(b, k, std::min(block, k_end - k), 0, n, to + k * padded_);
  }

  static int64_t padded(int64_t n) {
    const int64_t width = best_kernel().columns;
    return (n + width - 1) / width * width;
  }
  static int64_t size_of(int64_t k_end, int64_t n) { return k_end * padded(n); }

  // c = a · B over summed indices [begin, end), for columns [begin, end), which start a panel and
  // are written up to a whole one. left(row, rows, k, k_size, buffer) gives rows of A, as left_tile
  // does.
  template <class Left>
  void multiply(const Left& left, int64_t rows, Range summed, Range columns, float* c,
                int64_t ldc) const {
    const Kernel& kernel = best_kernel();
    float* buffer = scratch(Scratch::LEFT, kernel.rows * A_STRIDE);
    for (int64_t m = 0; m < rows; m += kernel.rows) {
      const int64_t height = std::min<int64_t>(kernel.rows, rows - m);
      for (int64_t k = summed.begin; k < summed.end; k += block_) {
        // The block as it was packed; beyond `summed.end` the factor is zero.
        const int64_t packed_size = std::min(block_, k_end_ - k);
        const int64_t k_size = std::min(block_, summed.end - k);
        const LeftTile tile = left(m, height, k, k_size, buffer);
        for (int64_t j = columns.begin; j < columns.end; j += kernel.columns) {
          float* to = c + m * ldc + j - columns.begin;
          kernel.run(height, k_size, tile, data_ + k * padded_ + j * packed_size, to, ldc,
                     k > summed.begin ? to : nullptr, ldc);
        }
      }
    }
  }

 private:
  const float* data_;
  int64_t k_end_, block_, padded_;
};

// Part `i` of `n` of [0, size), cut at multiples of `unit`.
inline Range part(int64_t size, int64_t unit, int64_t i, int64_t n) {
  const int64_t units = (size + unit - 1) / unit;
  return {std::min(size, units * i / n * unit), std::min(size, units * (i + 1) / n * unit)};
}

}  // namespace cqa
