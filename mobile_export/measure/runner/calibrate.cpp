// Products run in XNNPACK as a delegate runs them: activations quantized as they come, weights of 8 bits a channel or 4 bits a
// group of 32. Everything is the median of groups of calls; bytes are those of codes and scales.
#include "calibrate.h"

#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "attention.h"
#include "thread_pool.h"
#include "xnnpack_api.h"

namespace mobile_export {
namespace {

constexpr double kGroupSeconds = 2e-3;  // long against the clock and a wake-up, short against what else a machine does
constexpr int kGroups = 15;
constexpr double kMiB = 1 << 20;
constexpr double kSizesMiB[] = {0.5, 1, 2, 4, 8, 16, 32, 64, 128};
constexpr size_t kColumns = 1024;
constexpr size_t kGroupSize = 32;
constexpr size_t kPrompt = 128;
constexpr size_t kPromptRows = 2048;
constexpr float kAny = std::numeric_limits<float>::infinity();

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of a call.
template <typename Call>
double seconds_of(const Call& call) {
  call();
  int count = 1;
  for (double took = 0; took < kGroupSeconds; count *= 2) {
    const double began = now_s();
    for (int i = 0; i < count; ++i) call();
    took = now_s() - began;
  }
  std::vector<double> groups;
  for (int group = 0; group < kGroups; ++group) {
    const double began = now_s();
    for (int i = 0; i < count; ++i) call();
    groups.push_back((now_s() - began) / count);
  }
  std::nth_element(groups.begin(), groups.begin() + kGroups / 2, groups.end());
  return groups[kGroups / 2];
}

void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string("XNNPACK: ") + what + ": status " + std::to_string(status));
}

// A subgraph under construction, one value after the other, then a runtime on ExecuTorch's thread pool.
class Graph {
 public:
  explicit Graph(uint32_t externals) {
    check(xnn_initialize(nullptr), "initialising");
    check(xnn_create_workspace(&workspace_), "a workspace");
    check(xnn_create_subgraph(externals, 0, &subgraph_), "a graph");
  }
  ~Graph() {
    if (runtime_) xnn_delete_runtime(runtime_);
    if (subgraph_) xnn_delete_subgraph(subgraph_);
    xnn_release_workspace(workspace_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // A float value of [rows, columns] that lives in memory of ours.
  uint32_t external(uint32_t id, size_t rows, size_t columns, uint32_t flags) {
    memory_.emplace_back(rows * columns + XNN_EXTRA_BYTES / sizeof(float), 1.f);
    externals_.push_back({id, memory_.back().data()});
    return tensor(rows, columns, nullptr, id, flags);
  }
  uint32_t constant(size_t rows, size_t columns, float value) {
    constants_.emplace_back(rows * columns + XNN_EXTRA_BYTES / sizeof(float), value);
    return tensor(rows, columns, constants_.back().data(), XNN_INVALID_VALUE_ID, 0);
  }
  uint32_t internal(size_t rows, size_t columns) { return tensor(rows, columns, nullptr, XNN_INVALID_VALUE_ID, 0); }

  // output = input weights^T, every weight 1 / columns, so that ones give ones.
  void product(uint32_t input, uint32_t output, size_t batch, size_t rows, size_t columns, int bits) {
    const size_t shape[] = {rows, columns}, rows_in[] = {batch, columns};
    uint32_t quantized = 0, filter = 0;
    check(
        xnn_define_dynamically_quantized_tensor_value(
            subgraph_, xnn_datatype_qdint8, 2, 1, rows_in, XNN_INVALID_VALUE_ID, 0, &quantized),
        "a quantized value");
    check(xnn_define_convert(subgraph_, input, quantized, 0), "a conversion");
    const float scale = 1.f / static_cast<float>(columns);
    if (bits == 8) {
      codes_.emplace_back(rows * columns + XNN_EXTRA_BYTES, 1);
      scales_.emplace_back(rows + XNN_EXTRA_BYTES / sizeof(float), scale);
      check(
          xnn_define_channelwise_quantized_tensor_value(
              subgraph_, xnn_datatype_qcint8, scales_.back().data(), 2, 0, shape, codes_.back().data(), XNN_INVALID_VALUE_ID, 0,
              &filter),
          "8-bit weights");
    } else {
      codes_.emplace_back(rows * columns / 2 + XNN_EXTRA_BYTES, 0x99);  // 9 - 8, twice
      uint32_t as_bits = 0;
      std::copy_n(reinterpret_cast<const char*>(&scale), sizeof scale, reinterpret_cast<char*>(&as_bits));
      short_scales_.emplace_back(rows * columns / kGroupSize + XNN_EXTRA_BYTES, static_cast<uint16_t>(as_bits >> 16));
      check(
          xnn_define_blockwise_quantized_tensor_value(
              subgraph_, xnn_datatype_qbint4, 8, short_scales_.back().data(), 2, 0, kGroupSize, shape, codes_.back().data(),
              XNN_INVALID_VALUE_ID, 0, &filter),
          "4-bit weights");
    }
    check(
        xnn_define_fully_connected(subgraph_, -kAny, kAny, quantized, filter, XNN_INVALID_VALUE_ID, output, 0), "a product");
  }

  void float_product(uint32_t input, uint32_t filter, uint32_t output) {
    check(
        xnn_define_fully_connected(subgraph_, -kAny, kAny, input, filter, XNN_INVALID_VALUE_ID, output, 0), "a float product");
  }
  void multiply(uint32_t a, uint32_t b, uint32_t out) {
    check(xnn_define_multiply2(subgraph_, -kAny, kAny, a, b, out, 0), "a multiplication");
  }
  void add(uint32_t a, uint32_t b, uint32_t out) {
    check(xnn_define_add2(subgraph_, -kAny, kAny, a, b, out, 0), "an addition");
  }
  void sigmoid(uint32_t in, uint32_t out) { check(xnn_define_sigmoid(subgraph_, in, out, 0), "a sigmoid"); }

  // An RMS norm as our exports have it: the mean is a product with one row.
  uint32_t norm(uint32_t input, size_t width) {
    const uint32_t square = internal(1, width), mean = internal(1, 1), root = internal(1, 1);
    const uint32_t scaled = internal(1, width), out = internal(1, width);
    check(xnn_define_square(subgraph_, input, square, 0), "a square");
    float_product(square, constant(1, width, 1.f / static_cast<float>(width)), mean);
    check(xnn_define_reciprocal_square_root(subgraph_, mean, root, 0), "a root");
    multiply(input, root, scaled);
    multiply(scaled, constant(1, width, 1.f), out);
    return out;
  }

  // Packs the weights; what they were packed from is freed.
  void finish() {
    auto* threads = executorch::extension::threadpool::get_pthreadpool();
    check(xnn_create_runtime_v4(subgraph_, nullptr, workspace_, threads, 0, &runtime_), "a runtime");
    check(xnn_delete_subgraph(subgraph_), "the end of a graph");
    subgraph_ = nullptr;
    codes_.clear();
    call();
  }

  // As a delegate is called: shapes and places of the values first.
  void call() {
    check(xnn_reshape_runtime(runtime_), "reshaping");
    check(xnn_setup_runtime_v2(runtime_, externals_.size(), externals_.data()), "setting up");
    check(xnn_invoke_runtime(runtime_), "running");
  }

  float first_of(size_t external) const { return memory_[external][0]; }

 private:
  uint32_t tensor(size_t rows, size_t columns, const void* data, uint32_t id, uint32_t flags) {
    const size_t shape[] = {rows, columns};
    uint32_t made = 0;
    check(xnn_define_tensor_value(subgraph_, xnn_datatype_fp32, 2, shape, data, id, flags, &made), "a value");
    return made;
  }

  xnn_workspace* workspace_ = nullptr;
  xnn_subgraph* subgraph_ = nullptr;
  xnn_runtime* runtime_ = nullptr;
  std::vector<xnn_external_value> externals_;
  std::vector<std::vector<float>> memory_, constants_;
  std::vector<std::vector<float>> scales_;
  std::vector<std::vector<uint16_t>> short_scales_;
  std::vector<std::vector<uint8_t>> codes_;
};

// Seconds of [batch, columns] times [rows, columns]^T.
double product_seconds(size_t batch, size_t rows, int bits) {
  Graph graph(2);
  const uint32_t input = graph.external(0, batch, kColumns, XNN_VALUE_FLAG_EXTERNAL_INPUT);
  const uint32_t output = graph.external(1, batch, rows, XNN_VALUE_FLAG_EXTERNAL_OUTPUT);
  graph.product(input, output, batch, rows, kColumns, bits);
  graph.finish();
  if (std::abs(graph.first_of(1) - 1) > 0.05f) {
    throw std::runtime_error("XNNPACK: a product of ones gives " + std::to_string(graph.first_of(1)));
  }
  return seconds_of([&] { graph.call(); });
}

// Bytes of a row of weights, scales included.
size_t row_bytes(int bits) { return bits == 8 ? kColumns + 4 : kColumns / 2 + kColumns / kGroupSize * 2; }

// One number a size: 10**9 operations a second of products of one token with so many bytes of weights.
std::string matvec_json(int bits) {
  std::ostringstream json;
  for (const double mib : kSizesMiB) {
    const auto rows = static_cast<size_t>(mib * kMiB / static_cast<double>(row_bytes(bits)));
    const double gops = 2e-9 * static_cast<double>(rows * kColumns) / product_seconds(1, rows, bits);
    json << (json.tellp() > 0 ? "," : "[") << "{\"mib\":" << mib << ",\"rate\":" << gops << "}";
  }
  return json.str() + "]";
}

double prefill_gops(int bits) {
  return 2e-9 * static_cast<double>(kPrompt * kPromptRows * kColumns) / product_seconds(kPrompt, kPromptRows, bits);
}

// 10**9 bytes a second read by all threads, by size.
std::string stream_json() {
  std::vector<uint64_t> memory(static_cast<size_t>(kSizesMiB[std::size(kSizesMiB) - 1] * kMiB) / sizeof(uint64_t), 1);
  const auto threads = static_cast<int64_t>(executorch::extension::threadpool::get_threadpool()->get_thread_count());
  std::vector<uint64_t> sums(threads * 8);
  std::ostringstream json;
  for (const double mib : kSizesMiB) {
    const auto words = static_cast<int64_t>(mib * kMiB) / static_cast<int64_t>(sizeof(uint64_t));
    const double seconds = seconds_of([&] {
      executorch::extension::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          uint64_t sum = 0;
          for (int64_t i = words * part / threads; i < words * (part + 1) / threads; ++i) sum += memory[i];
          sums[part * 8] = sum;
        }
      });
    });
    json << (json.tellp() > 0 ? "," : "[") << "{\"mib\":" << mib << ",\"rate\":" << 1e-9 * mib * kMiB / seconds << "}";
  }
  return json.str() + "]";
}

// Operations of one token's attention over float32 keys and values of many slots, one after the other, as a token meets them.
double attention_gops() {
  constexpr int64_t kSlots = 32, kContext = 512, kHeads = 9, kKvHeads = 3, kHeadDim = 64, kSlot = kContext * kKvHeads * kHeadDim;
  std::vector<float> keys(kSlots * kSlot, 0.5f), values(kSlots * kSlot, 0.5f);
  std::vector<float> query(kHeads * kHeadDim, 0.5f), out(query.size());
  Attention a;
  a.query = {query.data(), nullptr, nullptr, nullptr, kHeads * kHeadDim, kHeadDim, 0, 0};
  a.out = out.data();
  a.length = 1;
  a.n_keys = kContext;
  a.start = kContext - 1;
  a.heads = kHeads;
  a.kv_heads = kKvHeads;
  a.head_dim = kHeadDim;
  a.scale = 0.125f;
  const double seconds = seconds_of([&] {
    for (int64_t slot = 0; slot < kSlots; ++slot) {
      a.keys = {keys.data() + slot * kSlot, nullptr, nullptr, nullptr, kKvHeads * kHeadDim, kHeadDim, 0, 0};
      a.values = {values.data() + slot * kSlot, nullptr, nullptr, nullptr, kKvHeads * kHeadDim, kHeadDim, 0, 0};
      attend(a);
    }
  });
  return 1e-9 * 4 * kSlots * kContext * kHeads * kHeadDim / seconds;
}

// Microseconds of one execution of a block so narrow that its calls and small operators are all there is.
double execution_us() {
  constexpr size_t kHidden = 64, kWide = 128;
  Graph first(3), second(4);
  {
    const uint32_t x = first.external(0, 1, kHidden, XNN_VALUE_FLAG_EXTERNAL_INPUT);
    const uint32_t turned = first.external(1, 1, kHidden, XNN_VALUE_FLAG_EXTERNAL_OUTPUT);
    const uint32_t angles = first.external(2, 1, kHidden, XNN_VALUE_FLAG_EXTERNAL_INPUT);
    const uint32_t qkv = first.internal(1, kHidden), swapped = first.internal(1, kHidden);
    const uint32_t cosines = first.internal(1, kHidden), sines = first.internal(1, kHidden);
    first.product(first.norm(x, kHidden), qkv, 1, kHidden, kHidden, 4);
    first.float_product(qkv, first.constant(kHidden, kHidden, 1), swapped);
    first.multiply(qkv, angles, cosines);
    first.multiply(swapped, angles, sines);
    first.add(cosines, sines, turned);
    first.finish();
  }
  {
    const uint32_t x = second.external(0, 1, kHidden, XNN_VALUE_FLAG_EXTERNAL_INPUT);
    const uint32_t mixed = second.external(1, 1, kHidden, XNN_VALUE_FLAG_EXTERNAL_INPUT);
    const uint32_t out = second.external(2, 1, kHidden, XNN_VALUE_FLAG_EXTERNAL_OUTPUT);
    const uint32_t projected = second.internal(1, kHidden), sum = second.internal(1, kHidden);
    const uint32_t gate = second.internal(1, kWide), open = second.internal(1, kWide), silu = second.internal(1, kWide);
    const uint32_t up = second.internal(1, kWide), wide = second.internal(1, kWide), down = second.internal(1, kHidden);
    second.product(mixed, projected, 1, kHidden, kHidden, 4);
    second.add(x, projected, sum);
    const uint32_t normed = second.norm(sum, kHidden);
    second.product(normed, gate, 1, kWide, kHidden, 4);
    second.product(normed, up, 1, kWide, kHidden, 4);
    second.sigmoid(gate, open);
    second.multiply(gate, open, silu);
    second.multiply(silu, up, wide);
    second.product(wide, down, 1, kHidden, kWide, 4);
    second.add(sum, down, out);
    second.finish();
  }
  return 1e6 * seconds_of([&] {
    first.call();
    second.call();
  });
}

}  // namespace

std::string calibrate_json(const std::string& runtime) {
  std::ostringstream json;
  json << "{\"runtime\":\"" << runtime
       << "\",\"threads\":" << executorch::extension::threadpool::get_threadpool()->get_thread_count()
       << ",\"stream\":" << stream_json() << ",\"decode_8_bit\":" << matvec_json(8) << ",\"decode_4_bit\":" << matvec_json(4)
       << ",\"prefill_8_bit_gops\":" << prefill_gops(8) << ",\"prefill_4_bit_gops\":" << prefill_gops(4)
       << ",\"attention_gops\":" << attention_gops() << ",\"execution_us\":" << execution_us() << "}";
  return json.str();
}

}  // namespace mobile_export
