// torch's own threads, so that native code and torch's never run two pools at once.
#pragma once

#include <torch/csrc/stable/ops.h>

namespace cqa {

inline int64_t n_threads() { return torch::stable::get_num_threads(); }

// Calls f(task) for every task in [0, n), split evenly over the threads.
template <class F>
void parallel_for(int64_t n, const F& f) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) f(task);
  });
}

}  // namespace cqa
