// What the ops need of torch's stable tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "gemm.h"
#include "philox.h"
#include "threads.h"

namespace cqa {

using torch::stable::Tensor;

inline Matrix matrix(const Tensor& t) {
  return {t.const_data_ptr<float>(), t.stride(0), t.stride(1)};
}

inline Stream stream_of(int64_t seed, int64_t step, int64_t stream) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(stream), static_cast<uint32_t>(step)};
}

}  // namespace cqa
