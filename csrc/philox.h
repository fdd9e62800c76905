// Philox4x32-10, the stream of cqa/kernels/philox.py, eight counters at a time.
#pragma once

#include "simd.h"

namespace cqa {

struct Stream {
  uint32_t seed_low, seed_high, stream, step;
};

// The words of counters [first, first + 8), in order: 8 x 4.
CQA_INLINE void philox8(const Stream& s, uint64_t first, uint32_t* words) {
  using Vec = V<uint64_t, 8>;
  const Vec low = Vec{} + 0xFFFFFFFFull;
  const Vec index = first + Vec{0, 1, 2, 3, 4, 5, 6, 7};
  Vec c0 = index & low, c1 = index >> 32;
  Vec c2 = Vec{} + uint64_t{s.stream}, c3 = Vec{} + uint64_t{s.step};
  uint32_t k0 = s.seed_low, k1 = s.seed_high;
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    const Vec p0 = c0 * 0xD2511F53ull, p2 = c2 * 0xCD9E8D57ull;
    c0 = (p2 >> 32) ^ c1 ^ uint64_t{k0};
    c2 = (p0 >> 32) ^ c3 ^ uint64_t{k1};
    c1 = p2 & low;
    c3 = p0 & low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const Vec front = c0 | c1 << 32, back = c2 | c3 << 32;
  const Vec one = {0, 8, 1, 9, 2, 10, 3, 11}, two = {4, 12, 5, 13, 6, 14, 7, 15};
  store(words, __builtin_shuffle(front, back, one));
  store(words + 16, __builtin_shuffle(front, back, two));
}

// One module's dropout of a pass. Columns of a row share its counters, eight 16-bit lanes to each.
struct Mask {
  Stream stream;
  const int64_t* rows;  // number of each row within the accumulation window
  int64_t counters_per_row;
  uint16_t threshold;  // lanes below are dropped

  // The lanes of columns [column, column + n) of a row; column is a multiple of 8. Writes whole
  // groups of 64.
  void lanes(int64_t row, int64_t column, int64_t n, uint16_t* to) const;

  // to = keep ? from : 0
  void apply(int64_t row, int64_t column, int64_t n, const float* from, float* to) const;

  // to += keep ? from : 0
  void add(int64_t row, int64_t column, int64_t n, const float* from, float* to) const;
};

}  // namespace cqa
