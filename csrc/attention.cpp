// Twin of cqa/kernels/attention.py: one span and head at a time, scores of a band of queries in
// full.
//
// A query's result depends on its own keys alone: products are summed in blocks counted from the
// span's first key, and keys that a query does not see have weight 0.
#include <cmath>

#include "tensors.h"

namespace cqa {
namespace {

constexpr int64_t BAND = 48;  // queries whose scores exist at a time

// Rows of one head, of fp32 that is read or written: `at(i)` has `width` floats.
template <class T>
struct HeadOf {
  T* data;
  int64_t row_stride, width;

  T* at(int64_t row) const { return data + row * row_stride; }
};
using Head = HeadOf<const float>;
using OwnHead = HeadOf<float>;

Head head_of(const Tensor& t, int64_t head) {
  return {t.const_data_ptr<float>() + head * t.stride(1), t.stride(0), t.size(2)};
}

OwnHead own_head_of(const Tensor& t, int64_t head) {
  return {t.mutable_data_ptr<float>() + head * t.stride(1), t.stride(0), t.size(2)};
}

struct Span {
  int64_t query_start, query_stop, own_start, own_stop, prefix_start, prefix_stop;

  int64_t n_queries() const { return query_stop - query_start; }
  int64_t n_prefix() const { return prefix_stop - prefix_start; }
  int64_t n_keys() const { return own_stop - own_start + n_prefix(); }
  int64_t key_row(int64_t key) const {
    return key < n_prefix() ? prefix_start + key : own_start + key - n_prefix();
  }
};

// Keys [first, last) that query i of a span sees.
struct Sight {
  int64_t offset, window;  // window 0 is all

  Range of(int64_t query) const {
    const int64_t last = offset + query + 1;
    return {window && last > window ? last - window : 0, last};
  }
};

struct Band {
  int64_t first, n, begin, end;  // queries, and the keys that any of them sees

  Band(const Span& span, const Sight& sight, int64_t first)
      : first(first), n(std::min(BAND, span.n_queries() - first)) {
    begin = sight.of(first).begin / BLOCK_K * BLOCK_K;
    end = sight.of(first + n - 1).end;
  }
};

// A factor packed whole, in blocks of BLOCK_K counted from the span's first key.
Packed packed(Scratch slot, const Matrix& b, int64_t k_end, int64_t n) {
  return {b, k_end, n, BLOCK_K, scratch(slot, Packed::size_of(k_end, n))};
}

// c = a · B for some columns; panels of them are written whole.
void multiply(const Matrix& a, const Packed& b, int64_t rows, Range summed, Range columns, float* c,
              int64_t ldc) {
  b.multiply([&](auto... where) { return left_tile(a, where...); }, rows, summed, columns, c, ldc);
}

CQA_CLONES void gather(const Span& span, const Head& heads, float* to) {
  for (int64_t key = 0; key < span.n_keys(); key++)
    std::memcpy(to + key * heads.width, heads.at(span.key_row(key)), heads.width * sizeof(float));
}

// Scores to e^(scale · (score - top)) in place; returns Σ, and top by reference.
CQA_CLONES double soften(float* s, int64_t n, float scale, float& top) {
  top = max_of(s, n);
  double total = 0;
  for (int64_t start = 0; start < n; start += 512) {
    Floats sum{};
    for (int64_t i = start; i < std::min(n, start + 512); i += 16) {
      const Floats v = load_part(s + i, n - i, -INF);
      const Floats e = exp_float((v - top) * scale);
      sum += e;
      store_part(s + i, e, n - i);
    }
    total += sum_of(sum);
  }
  return total;
}

// p = e^(scale · score - lse) in place of the scores; dp becomes p · (dp - delta) · scale.
CQA_CLONES void soften_backward(float* p, float* dp, int64_t n, float scale, float lse,
                                float delta) {
  for (int64_t i = 0; i < n; i += 16) {
    const Floats weight = exp_float(load_part(p + i, n - i, 0) * scale - lse);
    const Floats d = load_part(dp + i, n - i, 0);
    store_part(p + i, weight, n - i);
    store_part(dp + i, weight * (d - delta) * scale, n - i);
  }
}

CQA_CLONES void scale_row(const float* from, float by, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] = from[i] * by;
}

CQA_CLONES double dot(const float* a, const float* b, int64_t n) {
  V<double, 8> sum{};
  for (int64_t i = 0; i < n; i += 8) sum += load_wide(a + i, n - i) * load_wide(b + i, n - i);
  return sum_of(sum);
}

void clear_unseen(float* row, const Range& seen, const Band& band) {
  std::fill(row + band.begin, row + seen.begin, 0.0f);
  std::fill(row + seen.end, row + band.end, 0.0f);
}

void forward(const Span& span, const Sight& sight, float scale, const Head& q, const Head& k,
             const Head& v, const OwnHead& out, float* lse, int64_t ld_lse) {
  const int64_t n_keys = span.n_keys(), width = q.width, ld = Packed::padded(n_keys);
  float* keys = scratch(Scratch::GATHERED, n_keys * width);
  gather(span, k, keys);
  const Packed keys_t = packed(Scratch::KEYS_T, {keys, 1, width}, width, n_keys);
  gather(span, v, keys);
  const Packed values = packed(Scratch::VALUES, {keys, width, 1}, n_keys, width);
  const int64_t ld_mixed = Packed::padded(width);
  float* scores = scratch(Scratch::PRODUCT, BAND * ld);
  float* mixed = scratch(Scratch::HEAD, BAND * ld_mixed);
  for (int64_t first = 0; first < span.n_queries(); first += BAND) {
    const Band band(span, sight, first);
    const int64_t row = span.query_start + first;
    multiply({q.at(row), q.row_stride, 1}, keys_t, band.n, {0, width}, {band.begin, band.end},
             scores + band.begin, ld);
    double total[BAND];
    for (int64_t i = 0; i < band.n; i++) {
      const Range seen = sight.of(first + i);
      float top;
      total[i] = soften(scores + i * ld + seen.begin, seen.end - seen.begin, scale, top);
      lse[(row + i) * ld_lse] = static_cast<float>(double{top} * scale + std::log(total[i]));
      clear_unseen(scores + i * ld, seen, band);
    }
    multiply({scores, ld, 1}, values, band.n, {band.begin, band.end}, {0, width}, mixed,
             ld_mixed);
    for (int64_t i = 0; i < band.n; i++)
      scale_row(mixed + i * ld_mixed, static_cast<float>(1 / total[i]), width,
                out.at(row + i));
  }
}

// dk and dv (n_keys, D) are this head's part of the gradients, added to.
void backward(const Span& span, const Sight& sight, float scale, const Head& q, const Head& k,
              const Head& v, const Head& out, const Head& dout, const float* lse,
              int64_t ld_lse, const OwnHead& dq, float* dk, float* dv) {
  const int64_t n_keys = span.n_keys(), width = q.width, ld = Packed::padded(n_keys);
  float* keys = scratch(Scratch::GATHERED, n_keys * width);
  gather(span, v, keys);
  const Packed values_t = packed(Scratch::VALUES, {keys, 1, width}, width, n_keys);
  gather(span, k, keys);
  const Packed keys_t = packed(Scratch::KEYS_T, {keys, 1, width}, width, n_keys);
  const Packed keys_straight = packed(Scratch::KEYS, {keys, width, 1}, n_keys, width);
  const int64_t ld_dq = Packed::padded(width);
  float* p = scratch(Scratch::PRODUCT, 2 * BAND * ld);
  float* ds = p + BAND * ld;
  float* dq_band = scratch(Scratch::HEAD, BAND * ld_dq);
  for (int64_t first = 0; first < span.n_queries(); first += BAND) {
    const Band band(span, sight, first);
    const int64_t row = span.query_start + first;
    const Range keys_seen = {band.begin, band.end};
    for (int64_t i = 0; i < band.n; i++) prefetch(out.at(row + i), width);
    multiply({q.at(row), q.row_stride, 1}, keys_t, band.n, {0, width}, keys_seen,
             p + band.begin, ld);
    multiply({dout.at(row), dout.row_stride, 1}, values_t, band.n, {0, width}, keys_seen,
             ds + band.begin, ld);
    for (int64_t i = 0; i < band.n; i++) {
      const Range seen = sight.of(first + i);
      const auto delta = static_cast<float>(dot(dout.at(row + i), out.at(row + i), width));
      soften_backward(p + i * ld + seen.begin, ds + i * ld + seen.begin, seen.end - seen.begin,
                      scale, lse[(row + i) * ld_lse], delta);
      clear_unseen(p + i * ld, seen, band);
      clear_unseen(ds + i * ld, seen, band);
    }
    multiply({ds, ld, 1}, keys_straight, band.n, keys_seen, {0, width}, dq_band, ld_dq);
    for (int64_t i = 0; i < band.n; i++)
      std::memcpy(dq.at(row + i), dq_band + i * ld_dq, width * sizeof(float));
    const auto accumulate = [&](const float* left, const Head& right, float* sum) {
      const Matrix b = {right.at(row), right.row_stride, 1};
      multiply_range(keys_seen, {0, width}, band.n, {left, 1, ld},
                     [&](auto... where) { pack_b(b, where...); }, {sum, width, sum, width});
    };
    accumulate(ds, q, dk);
    accumulate(p, dout, dv);
  }
}

CQA_CLONES void add_row(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

// Spans of queries and keys that exist; the last query of one sees its last key, the first a key.
std::vector<Span> spans_of(const Tensor& spans, int64_t n_queries, int64_t n_keys) {
  expect(spans, "spans", {ANY, 6});
  STD_TORCH_CHECK(spans.is_contiguous(), "expected contiguous spans");
  const int64_t* s = spans.const_data_ptr<int64_t>();
  const auto within = [](int64_t start, int64_t stop, int64_t n) {
    return 0 <= start && start <= stop && stop <= n;
  };
  std::vector<Span> list;
  for (int64_t i = 0; i < spans.size(0); i++, s += 6) {
    const Span span = {s[0], s[1], s[2], s[3], s[4], s[5]};
    STD_TORCH_CHECK(within(s[0], s[1], n_queries) && within(s[2], s[3], n_keys) &&
                        within(s[4], s[5], n_keys) && span.n_queries() <= span.n_keys(),
                    "expected spans within ", n_queries, " queries and ", n_keys,
                    " keys, each with as many keys as queries, got span ", i);
    list.push_back(span);
  }
  return list;
}

void expect_heads(const Tensor& q, const Tensor& k, const Tensor& v) {
  expect_rows(q, "q", {ANY, ANY, ANY});
  expect_rows(k, "k", {ANY, ANY, q.size(2)});
  expect_rows(v, "v", {k.size(0), k.size(1), q.size(2)});
  STD_TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "expected ", k.size(1),
                  " heads of keys to share ", q.size(1), " of queries evenly");
}

Sight sight_of(const Span& span, int64_t window) {
  return {span.n_keys() - span.n_queries(), window};
}

}  // namespace

// q, out (Mq, H, D), k, v (M, H_kv, D), lse (Mq, H); spans (n, 6) int64, window 0 is none
void attention(Tensor q, Tensor k, Tensor v, Tensor spans, int64_t window, double scale, Tensor out,
               Tensor lse) {
  expect_heads(q, k, v);
  const int64_t m = q.size(0), heads = q.size(1), group = heads / k.size(1);
  expect_rows(out, "out", {m, heads, q.size(2)});
  expect_own_rows(lse, "lse", m, heads);
  const std::vector<Span> list = spans_of(spans, m, k.size(0));
  const int64_t n = list.size();
  parallel_for(n * heads, [&](int64_t task) {
    const int64_t h = task / n;
    const Span& span = list[task % n];
    forward(span, sight_of(span, window), static_cast<float>(scale), head_of(q, h),
            head_of(k, h / group), head_of(v, h / group), own_head_of(out, h),
            lse.mutable_data_ptr<float>() + h, lse.stride(0));
  });
}

// dk, dv (M, H_kv, D) are added to; spans that share keys are taken one after the other.
void attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                        Tensor spans, int64_t window, double scale, Tensor dq, Tensor dk,
                        Tensor dv) {
  expect_heads(q, k, v);
  const int64_t m = q.size(0), heads = q.size(1), group = heads / k.size(1), width = q.size(2);
  for (const Tensor& t : {dout, out, dq}) expect_rows(t, "dout, out and dq", {m, heads, width});
  for (const Tensor& t : {dk, dv}) expect_rows(t, "dk and dv", {k.size(0), k.size(1), width});
  expect_rows(lse, "lse", {m, heads});
  const std::vector<Span> list = spans_of(spans, m, k.size(0));
  const int64_t n = list.size();
  std::vector<int64_t> offset(n + 1);
  for (int64_t i = 0; i < n; i++) offset[i + 1] = offset[i] + 2 * width * list[i].n_keys();
  std::vector<float> parts(offset[n] * heads);
  const auto part_of = [&](int64_t i, int64_t h) {
    return parts.data() + offset[i] * heads + h * (offset[i + 1] - offset[i]);
  };
  parallel_for(n * heads, [&](int64_t task) {
    const int64_t h = task / n, i = task % n;
    float* part = part_of(i, h);
    backward(list[i], sight_of(list[i], window), static_cast<float>(scale), head_of(q, h),
             head_of(k, h / group), head_of(v, h / group), head_of(out, h), head_of(dout, h),
             lse.const_data_ptr<float>() + h, lse.stride(0), own_head_of(dq, h), part,
             part + width * list[i].n_keys());
  });
  // The heads of a group are summed in their order, whatever the threads did.
  parallel_for(k.size(1), [&](int64_t kv) {
    const OwnHead to_k = own_head_of(dk, kv), to_v = own_head_of(dv, kv);
    for (int64_t i = 0; i < n; i++) {
      const int64_t n_keys = list[i].n_keys();
      for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        const float* from_k = part_of(i, h);
        const float* from_v = from_k + width * n_keys;
        for (int64_t key = 0; key < n_keys; key++) {
          const int64_t row = list[i].key_row(key);
          add_row(from_k + key * width, width, to_k.at(row));
          add_row(from_v + key * width, width, to_v.at(row));
        }
      }
    }
  });
}

}  // namespace cqa

STABLE_TORCH_LIBRARY_FRAGMENT(cqa, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor spans, int window, float scale, "
      "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor spans, int window, float scale, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cqa, CPU, m) {
  m.impl("attention", TORCH_BOX(&cqa::attention));
  m.impl("attention_backward", TORCH_BOX(&cqa::attention_backward));
}
