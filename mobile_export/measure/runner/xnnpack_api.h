// The part of XNNPACK's C interface that calibrate.cpp uses. The wheel exports these symbols and ships no header; that they are
// what is said here is seen from what a product gives (calibrate.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

struct pthreadpool;

namespace executorch::extension::threadpool {
pthreadpool* get_pthreadpool();
}

extern "C" {

struct xnn_subgraph;
struct xnn_runtime;
struct xnn_workspace;
struct xnn_weights_cache_provider;

struct xnn_external_value {
  uint32_t id;
  void* data;
};

constexpr int xnn_datatype_fp32 = 1;
constexpr int xnn_datatype_qcint8 = 6;
constexpr int xnn_datatype_qdint8 = 9;
constexpr int xnn_datatype_qbint4 = 12;
constexpr uint32_t XNN_INVALID_VALUE_ID = UINT32_MAX;
constexpr uint32_t XNN_VALUE_FLAG_EXTERNAL_INPUT = 1;
constexpr uint32_t XNN_VALUE_FLAG_EXTERNAL_OUTPUT = 2;
constexpr size_t XNN_EXTRA_BYTES = 128;  // that may be read beyond an array's end

int xnn_initialize(const void* allocator);
int xnn_create_workspace(xnn_workspace** workspace);
int xnn_release_workspace(xnn_workspace* workspace);
int xnn_create_subgraph(uint32_t external_value_ids, uint32_t flags, xnn_subgraph** subgraph);
int xnn_delete_subgraph(xnn_subgraph* subgraph);
int xnn_create_runtime_v4(
    xnn_subgraph* subgraph, xnn_weights_cache_provider* cache, xnn_workspace* workspace, pthreadpool* threads, uint32_t flags,
    xnn_runtime** runtime);
int xnn_delete_runtime(xnn_runtime* runtime);
int xnn_reshape_runtime(xnn_runtime* runtime);
int xnn_setup_runtime_v2(xnn_runtime* runtime, size_t count, const xnn_external_value* values);
int xnn_invoke_runtime(xnn_runtime* runtime);

int xnn_define_tensor_value(
    xnn_subgraph* subgraph, int type, size_t rank, const size_t* shape, const void* data, uint32_t external, uint32_t flags,
    uint32_t* id);
int xnn_define_dynamically_quantized_tensor_value(
    xnn_subgraph* subgraph, int type, size_t rank, size_t rank_of_a_scale, const size_t* shape, uint32_t external,
    uint32_t flags, uint32_t* id);
int xnn_define_channelwise_quantized_tensor_value(
    xnn_subgraph* subgraph, int type, const float* scales, size_t rank, size_t channel_axis, const size_t* shape,
    const void* data, uint32_t external, uint32_t flags, uint32_t* id);
int xnn_define_blockwise_quantized_tensor_value(
    xnn_subgraph* subgraph, int type, int32_t zero_point, const uint16_t* bfloat16_scales, size_t rank, size_t channel_axis,
    size_t block, const size_t* shape, const void* data, uint32_t external, uint32_t flags, uint32_t* id);

int xnn_define_convert(xnn_subgraph* subgraph, uint32_t input, uint32_t output, uint32_t flags);
int xnn_define_fully_connected(
    xnn_subgraph* subgraph, float least, float most, uint32_t input, uint32_t filter, uint32_t bias, uint32_t output,
    uint32_t flags);
int xnn_define_add2(
    xnn_subgraph* subgraph, float least, float most, uint32_t first, uint32_t second, uint32_t output, uint32_t flags);
int xnn_define_multiply2(
    xnn_subgraph* subgraph, float least, float most, uint32_t first, uint32_t second, uint32_t output, uint32_t flags);
int xnn_define_square(xnn_subgraph* subgraph, uint32_t input, uint32_t output, uint32_t flags);
int xnn_define_reciprocal_square_root(xnn_subgraph* subgraph, uint32_t input, uint32_t output, uint32_t flags);
int xnn_define_sigmoid(xnn_subgraph* subgraph, uint32_t input, uint32_t output, uint32_t flags);
}
