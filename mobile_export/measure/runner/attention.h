// Attention of one sequence over a KV cache, grouped-query heads included, on ExecuTorch's thread pool.
#pragma once

#include <cstdint>

namespace mobile_export {

// Rows of head_dim numbers, one a position and head. Strides are counted in numbers, not bytes.
// Either float32 `values`, or int8 `codes` that stand for (code - zero) * scale, scale and zero of their row.
struct Rows {
  const float* values = nullptr;
  const int8_t* codes = nullptr;
  const float* scales = nullptr;
  const int8_t* zeros = nullptr;
  int64_t position_stride = 0;
  int64_t head_stride = 0;
  int64_t position_scale_stride = 0;
  int64_t head_scale_stride = 0;
};

struct Attention {
  Rows query;
  Rows keys;
  Rows values;
  float* out = nullptr;  // the query's shape and strides
  int64_t length = 0;    // queries, the first at position `start`
  int64_t start = 0;
  int64_t n_keys = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads: query head h reads key head h / (heads / kv_heads)
  int64_t head_dim = 0;
  float scale = 1;
  bool causal = false;
  const float* mask = nullptr;  // added to the scaled scores: [length, mask_stride], or none
  int64_t mask_stride = 0;
};

// out = softmax(scale * query keys^T + mask) values, for every head.
void attend(const Attention& attention);

}  // namespace mobile_export
