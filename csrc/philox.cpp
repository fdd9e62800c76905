// Twin of cqa/kernels/philox.py.
#include "philox.h"

#include "tensors.h"

namespace cqa {
namespace {

constexpr int64_t GROUP = 64;  // lanes of eight counters

CQA_CLONES void fill_lanes(const Stream& stream, uint64_t counter, int64_t n, uint16_t* to) {
  for (int64_t j = 0; j < n; j += GROUP, counter += 8)
    philox8(stream, counter, reinterpret_cast<uint32_t*>(to + j));
}

// to = (add ? to : 0) + (lane >= threshold ? from : 0)
template <bool add>
CQA_INLINE void select(const uint16_t* lanes, uint16_t threshold, int64_t n, const float* from,
                       float* to) {
  using Floats = V<float, 16>;
  using Bits = V<int32_t, 16>;
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) {
    const Bits lane = __builtin_convertvector(load<V<uint16_t, 16>>(lanes + j), Bits);
    const Bits kept = load<Bits>(from + j) & (lane >= int32_t{threshold});
    Floats value;
    std::memcpy(&value, &kept, sizeof value);
    store(to + j, add ? load<Floats>(to + j) + value : value);
  }
  for (; j < n; j++) to[j] = (add ? to[j] : 0.0f) + (lanes[j] >= threshold ? from[j] : 0.0f);
}

CQA_CLONES void keep_or_zero(const uint16_t* lanes, uint16_t threshold, int64_t n,
                             const float* from, float* to) {
  select<false>(lanes, threshold, n, from, to);
}

CQA_CLONES void add_kept(const uint16_t* lanes, uint16_t threshold, int64_t n, const float* from,
                         float* to) {
  select<true>(lanes, threshold, n, from, to);
}

CQA_CLONES void fill_words(const Stream& stream, uint64_t counter, int64_t n, int32_t* to) {
  uint32_t words[32];
  for (int64_t i = 0; i < n; i += 8, counter += 8) {
    philox8(stream, counter, words);
    std::memcpy(to + 4 * i, words, std::min<int64_t>(8, n - i) * 4 * sizeof(uint32_t));
  }
}

}  // namespace

void Mask::lanes(int64_t row, int64_t column, int64_t n, uint16_t* to) const {
  fill_lanes(stream, rows[row] * counters_per_row + column / 8, n, to);
}

void Mask::apply(int64_t row, int64_t column, int64_t n, const float* from, float* to) const {
  uint16_t buffer[GROUP];
  for (int64_t j = 0; j < n; j += GROUP) {
    lanes(row, column + j, GROUP, buffer);
    keep_or_zero(buffer, threshold, std::min(GROUP, n - j), from + j, to + j);
  }
}

void Mask::add(int64_t row, int64_t column, int64_t n, const float* from, float* to) const {
  uint16_t buffer[GROUP];
  for (int64_t j = 0; j < n; j += GROUP) {
    lanes(row, column + j, GROUP, buffer);
    add_kept(buffer, threshold, std::min(GROUP, n - j), from + j, to + j);
  }
}

// The words of `out.size(1) / 4` counters a row.
void philox_words(int64_t seed, int64_t step, int64_t stream, Tensor rows, Tensor out) {
  const Stream words = stream_of(seed, step, stream);
  const int64_t calls = out.size(1) / 4;
  const int64_t* row = rows.const_data_ptr<int64_t>();
  int32_t* to = out.mutable_data_ptr<int32_t>();
  parallel_for(rows.size(0), [&](int64_t i) {
    fill_words(words, row[i] * calls, calls, to + i * 4 * calls);
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def("philox_words(int seed, int step, int stream, Tensor rows, Tensor(a!) out) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) { m.impl("philox_words", TORCH_BOX(&cqa::philox_words)); }
