// Twin of cqa/kernels/token_logprobs.py.
#include <cmath>
#include <type_traits>

#include "tensors.h"

namespace cqa {
namespace {

// The last vector of a row is filled up with -inf: no weight.
CQA_INLINE Floats load_logits(const float* from, int64_t n) { return load_part(from, n, -INF); }

// Turns a row of logits into the gradient p - onehot(target); returns the target's log-probability.
CQA_CLONES double loss_row(float* z, int64_t n, int64_t target) {
  constexpr int64_t RUN = 512;  // terms summed in fp32 before the sum goes on in fp64
  const float top = max_of(z, n);
  const double at_target = static_cast<double>(z[target]) - top;
  double total = 0;
  for (int64_t start = 0; start < n; start += RUN) {
    Floats sum{};
    const int64_t stop = std::min(n, start + RUN);
    for (int64_t i = start; i < stop; i += 16) {
      const Floats e = exp_float(load_logits(z + i, stop - i) - top);
      sum += e;
      store_part(z + i, e, stop - i);
    }
    total += sum_of(sum);
  }
  const double logp = at_target - std::log(total);
  const float scale = static_cast<float>(1 / total);
  for (int64_t i = 0; i < n; i++) z[i] *= scale;
  z[target] = static_cast<float>(std::expm1(logp));
  return logp;
}

// Σ w (z - mean)² of two groups together, less those of each: `a` and `b` are their Σ w, `a_sum` and
// `b_sum` their Σ w z.
double spread_between(double a, double a_sum, double b, double b_sum) {
  if (!(a > 0 && b > 0)) return 0;
  const double apart = a_sum / a - b_sum / b;
  return a * (b / (a + b)) * apart * apart;
}

// What is known of a row after some of its columns: the target's own is left out of the sums.
struct Partial {
  float top = std::numeric_limits<float>::lowest();  // finite: -inf minus it is no NaN
  int32_t above = 0;    // logits greater than the target's
  double weight = 0;    // Σ e^(z - top)
  double weighted = 0;  // Σ e^(z - top) (z - top)
  double spread = 0;    // Σ e^(z - top) (z - their mean)², where it is asked for

  // Moves the sums to a new maximum.
  void raise(float new_top) {
    if (weight > 0) {
      const double by = static_cast<double>(top) - new_top, factor = std::exp(by);
      weighted = factor * (weighted + by * weight);
      weight *= factor;
      spread *= factor;
    }
    top = new_top;
  }

  void join(const Partial& other) {
    const float max = std::max(top, other.top);
    if (other.weight == 0 && other.above == 0) return;
    Partial copy = other;
    if (top != max) raise(max);
    if (copy.top != max) copy.raise(max);
    spread += copy.spread + spread_between(weight, weighted, copy.weight, copy.weighted);
    weight += copy.weight;
    weighted += copy.weighted;
    above += copy.above;
  }
};

constexpr int64_t COLUMNS = 128;  // logits of a row that exist at a time
constexpr int64_t SPAN = 2048;    // columns whose sums are one partial result

template <bool SPREAD>
CQA_INLINE void add_tile(const float* z, int64_t n, float at_target, Partial& row) {
  const float top = max_of(z, n);
  if (top > row.top) row.raise(top);
  Floats weight{}, weighted{};
  V<int32_t, 16> above{};
  Floats kept[SPREAD ? COLUMNS / 16 : 1];
  for (int64_t i = 0; i < n; i += 16) {
    const Floats v = load_logits(z + i, n - i);
    const Floats by = v - row.top;
    const Floats e = exp_float(by);
    if (SPREAD) kept[i / 16] = e;
    weight += e;
    weighted += e > 0.0f ? e * by : Floats{};
    above -= v > at_target;
  }
  const float tile_weight = sum_of(weight), tile_weighted = sum_of(weighted);
  if (SPREAD && tile_weight > 0) {
    const float mean = tile_weighted / tile_weight;
    Floats spread{};
    for (int64_t i = 0; i < n; i += 16) {
      const Floats e = kept[i / 16];
      const Floats off = load_logits(z + i, n - i) - row.top - mean;
      spread += e > 0.0f ? e * off * off : Floats{};
    }
    row.spread +=
        sum_of(spread) + spread_between(row.weight, row.weighted, tile_weight, tile_weighted);
  }
  row.weight += tile_weight;
  row.weighted += tile_weighted;
  row.above += sum_of(above);
}

CQA_CLONES void add_columns(const float* z, int64_t n, float at_target, Partial& row) {
  add_tile<false>(z, n, at_target, row);
}

CQA_CLONES void add_columns_and_spread(const float* z, int64_t n, float at_target, Partial& row) {
  add_tile<true>(z, n, at_target, row);
}

CQA_CLONES double dot(const float* a, const float* b, int64_t n) {
  V<double, 8> sum{};
  for (int64_t i = 0; i < n; i += 8) sum += load_wide(a + i, n - i) * load_wide(b + i, n - i);
  return sum_of(sum);
}

// The same logit as the product gives, bit for bit, so that equal logits compare equal.
CQA_CLONES float dot_as_product(const float* a, const float* b, int64_t n) {
  const int64_t block = block_k(n);
  float total = 0;
  for (int64_t k = 0; k < n; k += block) {
    float sum = 0;
    for (int64_t i = k; i < std::min(n, k + block); i++) sum += a[i] * b[i];
    total += sum;
  }
  return total;
}

}  // namespace

// logits (M, V) become gradient rows in place; logp (M,) fp64
void loss_rows(Tensor logits, Tensor target, Tensor logp) {
  const int64_t m = logits.size(0), n = logits.size(1);
  expect_own_rows(logits, "logits", m, n);
  expect_rows(logp, "logp", {m});
  const int64_t* t = targets_below(n, target, m);
  float* z = logits.mutable_data_ptr<float>();
  double* out = logp.mutable_data_ptr<double>();
  parallel_for(m, [&](int64_t i) { out[i] = loss_row(z + i * logits.stride(0), n, t[i]); });
}

namespace {

// Logits of the rows' targets, of which `head_row` gives the row of the head: in fp64, and as the
// product gives them.
template <typename HeadRow>
void target_logits_of(const Matrix& h, const Weights& columns, int64_t m, int64_t d,
                      HeadRow head_row, double* exact, float* own) {
  parallel_for(m, [&](int64_t i) {
    float* wide = scratch(Scratch::RIGHT, d);
    if (columns.bf16.data) widen(columns.bf16.at(0, head_row(i)), d, wide);
    const float* weight = columns.bf16.data ? wide : columns.fp32.at(0, head_row(i));
    exact[i] = dot(h.at(i, 0), weight, d);
    own[i] = dot_as_product(h.at(i, 0), weight, d);
  });
}

Weights head_columns(const Tensor& head) {
  Weights columns = weights(head);
  columns.fp32 = {columns.fp32.data, 1, head.stride(0)};
  columns.bf16 = {columns.bf16.data, 1, head.stride(0)};
  return columns;
}

int64_t spans_of(int64_t v) { return (v + SPAN - 1) / SPAN; }

// What the spans of the columns from `first` to `first + v` make of the rows: partial (spans, m).
void add_spans(const Matrix& h, const Weights& columns, int64_t m, int64_t d, int64_t v,
               const int64_t* t, int64_t first, const float* own, bool spread, Partial* partial) {
  const int64_t height = best_kernel().rows, block = block_k(d);
  parallel_for(spans_of(v), [&](int64_t span) {
    float* b = scratch(Scratch::RIGHT, d * COLUMNS);
    float* a = scratch(Scratch::LEFT, height * A_STRIDE);
    float* tile = scratch(Scratch::PRODUCT, height * COLUMNS);
    const Kernel& kernel = best_kernel();
    const auto add = spread ? add_columns_and_spread : add_columns;
    for (int64_t n = span * SPAN; n < std::min(v, (span + 1) * SPAN); n += COLUMNS) {
      const int64_t n_size = std::min({COLUMNS, v - n});
      for (int64_t k = 0; k < d; k += block)
        pack_b(columns, k, std::min(block, d - k), n, n_size, b + k * COLUMNS);
      for (int64_t row = 0; row < m; row += height) {
        const int64_t n_rows = std::min(height, m - row);
        for (int64_t k = 0; k < d; k += block) {
          const int64_t k_size = std::min(block, d - k);
          const LeftTile left = left_tile(h, row, n_rows, k, k_size, a);
          for (int64_t j = 0; j < n_size; j += kernel.columns)
            kernel.run(n_rows, k_size, left, b + k * COLUMNS + j * k_size, tile + j, COLUMNS,
                       k ? tile + j : nullptr, COLUMNS);
        }
        for (int64_t i = 0; i < n_rows; i++) {
          const int64_t mine = t[row + i] - first - n;
          if (mine >= 0 && mine < n_size) tile[i * COLUMNS + mine] = -INF;
          add(tile + i * COLUMNS, n_size, own[row + i], partial[span * m + row + i]);
        }
      }
    }
  });
}

// Joins the spans of all columns in their order: stats (3 or 4, m), above (m,).
void join_spans(const Partial* partial, int64_t spans, int64_t m, const double* exact, bool spread,
                double* logp, int64_t* above) {
  parallel_for(m, [&](int64_t i) {
    Partial row = partial[i];
    for (int64_t span = 1; span < spans; span++) row.join(partial[span * m + i]);
    if (exact[i] > row.top) row.raise(static_cast<float>(exact[i]));
    const double by = exact[i] - row.top, weight = std::exp(by), total = row.weight + weight;
    // -ln(1 + others / own): never above 0, and exact near it.
    logp[i] = by > -600 ? -std::log1p(row.weight / weight) : by - std::log(total);
    const double log_total = by - logp[i];
    logp[m + i] = std::max(log_total - (row.weighted + weight * by) / total, 0.0);  // of NaN, NaN
    logp[2 * m + i] = row.top + log_total;
    if (spread)
      logp[3 * m + i] =
          (row.spread + spread_between(row.weight, row.weighted, weight, weight * by)) / total;
    above[i] = row.above;
  });
}

bool with_spread(const Tensor& stats, int64_t m) {
  const bool spread = stats.size(0) == 4;
  expect(stats, "stats", {spread ? 4 : 3, m});
  STD_TORCH_CHECK(stats.is_contiguous(), "expected contiguous stats");
  return spread;
}

// Partial results as bytes: nothing but these ops reads them.
void expect_partial(const Tensor& partial, int64_t spans, int64_t m) {
  static_assert(std::is_trivially_copyable_v<Partial> && sizeof(Partial) == 32);
  expect(partial, "partial", {spans, m, 4});
  STD_TORCH_CHECK(partial.is_contiguous(), "expected contiguous partial results");
}

}  // namespace

// Log-softmax, gather, entropy and rank from hidden (M, D) and head (V, D), fp32 or bf16: a tile of
// logits lives in the cache until its row sums are taken. stats (3, M) fp64: logp, entropy and lse,
// and in a fourth row, where there is one, varentropy; rank (M,).
void token_stats(Tensor hidden, Tensor head, Tensor target, Tensor stats, Tensor rank) {
  const int64_t m = hidden.size(0), d = hidden.size(1), v = head.size(0);
  expect_rows(hidden, "hidden", {m, d});
  expect_rows(head, "head", {v, d});
  const bool spread = with_spread(stats, m);
  expect_rows(rank, "rank", {m});
  const int64_t* t = targets_below(v, target, m);
  const Matrix h = row_matrix(hidden);
  const Weights columns = head_columns(head);
  std::vector<double> exact(m);
  std::vector<float> own(m);
  target_logits_of(h, columns, m, d, [&](int64_t i) { return t[i]; }, exact.data(), own.data());
  std::vector<Partial> partial(spans_of(v) * m);
  add_spans(h, columns, m, d, v, t, 0, own.data(), spread, partial.data());
  join_spans(partial.data(), spans_of(v), m, exact.data(), spread,
             stats.mutable_data_ptr<double>(), rank.mutable_data_ptr<int64_t>());
}

// The same in three parts, for a head of which some rows are there at a time. First, of the rows of
// the head that belong to the targets, (M, D): exact (M,) fp64 and own (M,) fp32.
void target_logits(Tensor hidden, Tensor target_rows, Tensor exact, Tensor own) {
  const int64_t m = hidden.size(0), d = hidden.size(1);
  expect_rows(hidden, "hidden", {m, d});
  expect_rows(target_rows, "target_rows", {m, d});
  expect_rows(exact, "exact", {m});
  expect_rows(own, "own", {m});
  target_logits_of(row_matrix(hidden), head_columns(target_rows), m, d,
                   [](int64_t i) { return i; }, exact.mutable_data_ptr<double>(),
                   own.mutable_data_ptr<float>());
}

// Then, of rows of the head from `first` on, a multiple of SPAN: partial (spans, M, 4) int64.
void piece_stats(Tensor hidden, Tensor piece, int64_t first, Tensor target, Tensor own, bool spread,
                 Tensor partial) {
  const int64_t m = hidden.size(0), d = hidden.size(1), v = piece.size(0);
  expect_rows(hidden, "hidden", {m, d});
  expect_rows(piece, "piece", {v, d});
  expect_rows(target, "target", {m});
  expect_rows(own, "own", {m});
  expect_partial(partial, spans_of(v), m);
  STD_TORCH_CHECK(first >= 0 && first % SPAN == 0, "expected a piece from a multiple of ", SPAN,
                  ", got ", first);
  Partial* out = reinterpret_cast<Partial*>(partial.mutable_data_ptr<int64_t>());
  std::fill_n(out, spans_of(v) * m, Partial());
  add_spans(row_matrix(hidden), head_columns(piece), m, d, v, target.const_data_ptr<int64_t>(),
            first, own.const_data_ptr<float>(), spread, out);
}

// Last, of the partial results of all pieces in their order: stats and rank as of `token_stats`.
void join_pieces(Tensor partial, Tensor exact, Tensor stats, Tensor rank) {
  const int64_t m = exact.size(0), spans = partial.size(0);
  expect_partial(partial, spans, m);
  STD_TORCH_CHECK(spans > 0, "expected partial results, got none");
  expect_rows(exact, "exact", {m});
  const bool spread = with_spread(stats, m);
  expect_rows(rank, "rank", {m});
  join_spans(reinterpret_cast<const Partial*>(partial.const_data_ptr<int64_t>()), spans, m,
             exact.const_data_ptr<double>(), spread, stats.mutable_data_ptr<double>(),
             rank.mutable_data_ptr<int64_t>());
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def("loss_rows(Tensor(a!) logits, Tensor target, Tensor(b!) logp) -> ()");
  m.def(
      "token_stats(Tensor hidden, Tensor head, Tensor target, Tensor(a!) stats, Tensor(b!) rank) "
      "-> ()");
  m.def("target_logits(Tensor hidden, Tensor target_rows, Tensor(a!) exact, Tensor(b!) own) -> ()");
  m.def(
      "piece_stats(Tensor hidden, Tensor piece, int first, Tensor target, Tensor own, bool spread, "
      "Tensor(a!) partial) -> ()");
  m.def("join_pieces(Tensor partial, Tensor exact, Tensor(a!) stats, Tensor(b!) rank) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) {
  m.impl("loss_rows", TORCH_BOX(&cqa::loss_rows));
  m.impl("token_stats", TORCH_BOX(&cqa::token_stats));
  m.impl("target_logits", TORCH_BOX(&cqa::target_logits));
  m.impl("piece_stats", TORCH_BOX(&cqa::piece_stats));
  m.impl("join_pieces", TORCH_BOX(&cqa::join_pieces));
}
