// The operators that ExecuTorch's LLM exports call and the wheel's C++ libraries lack: the wheel has them in an extension of
// Python's only. Names, arguments and meaning are those of executorch/extension/llm/custom_ops; float32 and int8 caches.
//
//   query [1, T, heads, head_dim]   caches [1, context, kv_heads, head_dim]   scales, zeros [1, positions, heads, 1]
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_includes.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "attention.h"

namespace mobile_export {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::is_contiguous_dim_order;
using executorch::runtime::KernelRuntimeContext;
using executorch::runtime::resize_tensor;
using std::optional;

bool plain(const Tensor& tensor, ScalarType type, int64_t dimensions) {
  return tensor.scalar_type() == type && tensor.dim() == dimensions &&
      is_contiguous_dim_order(tensor.dim_order().data(), tensor.dim());
}

bool given_and_plain(const optional<Tensor>& tensor, ScalarType type) { return tensor && plain(*tensor, type, 4); }

// --- caches ----------------------------------------------------------------------------------------------------------

bool goes_into(const Tensor& value, const Tensor& cache) {
  return value.dim() == 4 && cache.dim() == 4 && value.scalar_type() == cache.scalar_type() &&
      value.size(0) == cache.size(0) && value.size(2) == cache.size(2) && value.size(3) == cache.size(3) &&
      is_contiguous_dim_order(value.dim_order().data(), 4) && is_contiguous_dim_order(cache.dim_order().data(), 4);
}

// Copies `count` positions of sequence `batch`, all heads of each.
void copy_positions(const Tensor& value, Tensor& cache, int64_t batch, int64_t from, int64_t to, int64_t count) {
  const int64_t bytes = value.size(2) * value.size(3) * value.element_size();
  std::memcpy(
      static_cast<char*>(cache.mutable_data_ptr()) + (batch * cache.size(1) + to) * bytes,
      static_cast<const char*>(value.const_data_ptr()) + (batch * value.size(1) + from) * bytes, count * bytes);
}

// `out` is what the schema asks for and nobody reads.
Tensor& update_cache_out(KernelRuntimeContext& context, const Tensor& value, Tensor& cache, int64_t start, Tensor& out) {
  ET_KERNEL_CHECK(context, goes_into(value, cache), InvalidArgument, out);
  ET_KERNEL_CHECK(context, start >= 0 && start + value.size(1) <= cache.size(1), InvalidArgument, out);
  for (int64_t batch = 0; batch < value.size(0); ++batch) copy_positions(value, cache, batch, 0, start, value.size(1));
  return out;
}

// indices: int64 [batch, T], the position each token goes to.
Tensor& update_cache_with_indices_out(
    KernelRuntimeContext& context, const Tensor& value, Tensor& cache, int64_t, const Tensor& indices, Tensor& out) {
  ET_KERNEL_CHECK(context, goes_into(value, cache), InvalidArgument, out);
  ET_KERNEL_CHECK(context, plain(indices, ScalarType::Long, 2), InvalidArgument, out);
  ET_KERNEL_CHECK(
      context, indices.size(0) == value.size(0) && indices.size(1) == value.size(1), InvalidArgument, out);
  const int64_t* positions = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    ET_KERNEL_CHECK(context, positions[i] >= 0 && positions[i] < cache.size(1), InvalidArgument, out);
  }
  for (int64_t i = 0; i < indices.numel(); ++i) {
    copy_positions(value, cache, i / value.size(1), i % value.size(1), positions[i], 1);
  }
  return out;
}

// --- attention -------------------------------------------------------------------------------------------------------

// Which dimensions are positions and heads.
struct Axes {
  int position;
  int head;
};

Rows rows_of(const Tensor& tensor, Axes axes, int64_t batch) {
  Rows rows;
  rows.position_stride = tensor.strides()[axes.position];
  rows.head_stride = tensor.strides()[axes.head];
  if (tensor.scalar_type() == ScalarType::Float) {
    rows.values = tensor.const_data_ptr<float>() + batch * tensor.strides()[0];
  } else {
    rows.codes = tensor.const_data_ptr<int8_t>() + batch * tensor.strides()[0];
  }
  return rows;
}

Rows rows_of(const Tensor& codes, const Tensor& scales, const Tensor& zeros, Axes axes, int64_t batch) {
  Rows rows = rows_of(codes, axes, batch);
  rows.scales = scales.const_data_ptr<float>() + batch * scales.strides()[0];
  rows.zeros = zeros.const_data_ptr<int8_t>() + batch * zeros.strides()[0];
  rows.position_scale_stride = scales.strides()[axes.position];
  rows.head_scale_stride = scales.strides()[axes.head];
  return rows;
}

bool given(const optional<Tensor>& mask) { return mask && mask->numel() > 0; }

// Under a mask the cache may be a ring, of fewer rows than there are positions.
bool fit(
    const Tensor& query, const Tensor& keys, const Tensor& values, Axes axes, int64_t start,
    const optional<Tensor>& mask) {
  return query.size(0) == keys.size(0) && query.size(3) == keys.size(3) && keys.size(axes.head) > 0 &&
      query.size(axes.head) % keys.size(axes.head) == 0 && start >= 0 && query.size(axes.position) > 0 &&
      (given(mask) || start + query.size(axes.position) <= keys.size(axes.position)) &&
      std::equal(keys.sizes().begin(), keys.sizes().end(), values.sizes().begin());
}

bool fits(const optional<Tensor>& mask, int64_t length, int64_t context, bool causal) {
  if (!given(mask)) return true;
  return !causal && plain(*mask, ScalarType::Float, 2) && mask->size(0) == length && mask->size(1) == context;
}

bool same_but_for_head_dim(const Tensor& codes, const Tensor& parameters) {
  return std::equal(codes.sizes().begin(), codes.sizes().end() - 1, parameters.sizes().begin()) && parameters.size(3) == 1;
}

// What both operators have in common; rows of query, keys and values are still to be set.
Attention shape_of(
    const Tensor& query, const Tensor& keys, Axes axes, int64_t start, const optional<Tensor>& mask, bool causal,
    optional<double> scale) {
  Attention a;
  a.length = query.size(axes.position);
  a.start = start;
  a.heads = query.size(axes.head);
  a.kv_heads = keys.size(axes.head);
  a.head_dim = query.size(3);
  a.scale = static_cast<float>(scale ? *scale : 1 / std::sqrt(static_cast<double>(a.head_dim)));
  a.causal = causal;
  const bool masked = given(mask);
  a.mask = masked ? mask->const_data_ptr<float>() : nullptr;
  a.mask_stride = masked ? mask->size(1) : 0;
  a.n_keys = masked ? keys.size(axes.position) : start + a.length;  // a mask says itself what is not there yet
  return a;
}

Tensor& custom_sdpa_out(
    KernelRuntimeContext& context, const Tensor& query, const Tensor& keys, const Tensor& values, int64_t start,
    const optional<Tensor>& mask, double, bool causal, optional<double> scale, Tensor& out) {
  constexpr Axes axes{1, 2};
  for (const Tensor* tensor : {&query, &keys, &values}) {
    ET_KERNEL_CHECK(context, plain(*tensor, ScalarType::Float, 4), InvalidArgument, out);
  }
  ET_KERNEL_CHECK(context, fit(query, keys, values, axes, start, mask), InvalidArgument, out);
  ET_KERNEL_CHECK(context, fits(mask, query.size(1), keys.size(1), causal), InvalidArgument, out);
  ET_KERNEL_CHECK(context, resize_tensor(out, query.sizes()) == Error::Ok, InvalidArgument, out);
  Attention a = shape_of(query, keys, axes, start, mask, causal, scale);
  for (int64_t batch = 0; batch < query.size(0); ++batch) {
    a.query = rows_of(query, axes, batch);
    a.keys = rows_of(keys, axes, batch);
    a.values = rows_of(values, axes, batch);
    a.out = out.mutable_data_ptr<float>() + batch * query.strides()[0];
    attend(a);
  }
  return out;
}

Tensor& custom_quantized_sdpa_out(
    KernelRuntimeContext& context, const Tensor& query, const Tensor& keys, const Tensor& values, int64_t start,
    const optional<Tensor>& mask, double dropout, bool causal, optional<double> scale,
    const optional<Tensor>& query_zeros, const optional<Tensor>& query_scales, const optional<Tensor>& key_zeros,
    const optional<Tensor>& key_scales, const optional<Tensor>& value_zeros, const optional<Tensor>& value_scales,
    bool positions_at_2, Tensor& out) {
  const Axes axes = positions_at_2 ? Axes{2, 1} : Axes{1, 2};
  for (const Tensor* tensor : {&query, &keys, &values}) {
    ET_KERNEL_CHECK(context, plain(*tensor, ScalarType::Char, 4), InvalidArgument, out);
  }
  for (const auto* zeros : {&query_zeros, &key_zeros, &value_zeros}) {
    ET_KERNEL_CHECK(context, given_and_plain(*zeros, ScalarType::Char), InvalidArgument, out);
  }
  for (const auto* scales : {&query_scales, &key_scales, &value_scales}) {
    ET_KERNEL_CHECK(context, given_and_plain(*scales, ScalarType::Float), InvalidArgument, out);
  }
  ET_KERNEL_CHECK(
      context,
      same_but_for_head_dim(query, *query_zeros) && same_but_for_head_dim(query, *query_scales) &&
          same_but_for_head_dim(keys, *key_zeros) && same_but_for_head_dim(keys, *key_scales) &&
          same_but_for_head_dim(values, *value_zeros) && same_but_for_head_dim(values, *value_scales),
      InvalidArgument, out);
  ET_KERNEL_CHECK(context, out.scalar_type() == ScalarType::Float, InvalidArgument, out);
  ET_KERNEL_CHECK(context, fit(query, keys, values, axes, start, mask), InvalidArgument, out);
  ET_KERNEL_CHECK(
      context, fits(mask, query.size(axes.position), keys.size(axes.position), causal), InvalidArgument, out);
  ET_KERNEL_CHECK(context, resize_tensor(out, query.sizes()) == Error::Ok, InvalidArgument, out);
  Attention a = shape_of(query, keys, axes, start, mask, causal, scale);
  for (int64_t batch = 0; batch < query.size(0); ++batch) {
    a.query = rows_of(query, *query_scales, *query_zeros, axes, batch);
    a.keys = rows_of(keys, *key_scales, *key_zeros, axes, batch);
    a.values = rows_of(values, *value_scales, *value_zeros, axes, batch);
    a.out = out.mutable_data_ptr<float>() + batch * query.strides()[0];
    attend(a);
  }
  return out;
}

}  // namespace

EXECUTORCH_LIBRARY(llama, "update_cache.out", update_cache_out);
EXECUTORCH_LIBRARY(llama, "update_cache_with_indices.out", update_cache_with_indices_out);
EXECUTORCH_LIBRARY(llama, "custom_sdpa.out", custom_sdpa_out);
EXECUTORCH_LIBRARY(llama, "custom_quantized_sdpa.out", custom_quantized_sdpa_out);

}  // namespace mobile_export
