// Products run in XNNPACK as a delegate runs them: activations quantized as they come, weights of 8 bits a channel or 4 bits a
// group of 32. Everything is the median of groups of calls; bytes are those of codes and scales.
#include "calibrate.h"

#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
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
constexpr double kMoreThanACacheMiB = 64;
constexpr double kLargestAgainMiB = 16;
constexpr size_t kColumns = 1024;
constexpr size_t kGroupSize = 32;
constexpr size_t kPrompt = 128;
constexpr size_t kManyBlocks = 40, kFewBlocks = 4;  // more than a cache holds; enough for products of a prompt
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
  uint32_t norm(uint32_t input, size_t rows, size_t width) {
    const uint32_t square = internal(rows, width), mean = internal(rows, 1), root = internal(rows, 1);
    const uint32_t scaled = internal(rows, width), out = internal(rows, width);
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

// [batch, columns] times [rows, columns]^T.
std::unique_ptr<Graph> product_graph(size_t batch, size_t rows, int bits) {
  auto graph = std::make_unique<Graph>(2);
  const uint32_t input = graph->external(0, batch, kColumns, XNN_VALUE_FLAG_EXTERNAL_INPUT);
  const uint32_t output = graph->external(1, batch, rows, XNN_VALUE_FLAG_EXTERNAL_OUTPUT);
  graph->product(input, output, batch, rows, kColumns, bits);
  graph->finish();
  if (std::abs(graph->first_of(1) - 1) > 0.05f) {
    throw std::runtime_error("XNNPACK: a product of ones gives " + std::to_string(graph->first_of(1)));
  }
  return graph;
}

double product_seconds(size_t batch, size_t rows, int bits) {
  const auto graph = product_graph(batch, rows, bits);
  return seconds_of([&] { graph->call(); });
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

// Of products among others, so that their weights come from memory ("cold"), and of those that run a second time right after
// ("again"): what a cache keeps of a block that is shared. A number a size, as above.
std::string among_others_json(int bits) {
  const std::string name = std::to_string(bits) + "_bit";
  std::ostringstream cold, again;
  for (const double mib : kSizesMiB) {
    if (mib > kLargestAgainMiB) break;
    const auto rows = static_cast<size_t>(mib * kMiB / static_cast<double>(row_bytes(bits)));
    std::vector<std::unique_ptr<Graph>> graphs;
    for (double held = 0; held < kMoreThanACacheMiB; held += mib) graphs.push_back(product_graph(1, rows, bits));
    const auto run = [&](int times) {
      return seconds_of([&] {
        for (const auto& graph : graphs) {
          for (int i = 0; i < times; ++i) graph->call();
        }
      });
    };
    const double once = run(1), second = std::max(run(2) - once, 0.01 * once);
    const double operations = 2e-9 * static_cast<double>(graphs.size() * rows * kColumns);
    const char* before = cold.tellp() > 0 ? "," : "[";
    cold << before << "{\"mib\":" << mib << ",\"rate\":" << operations / once << "}";
    again << before << "{\"mib\":" << mib << ",\"rate\":" << operations / second << "}";
  }
  return "\"cold_" + name + "\":" + cold.str() + "],\"again_" + name + "\":" + again.str() + "]";
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

// Operations a second of attention over float32 keys and values that come from memory: more slots than a cache holds, one after
// the other, as a token meets them. length: queries at once.
double attention_gops(int64_t length) {
  constexpr int64_t kSlots = 128, kContext = 256, kHeads = 9, kKvHeads = 3, kHeadDim = 64, kSlot = kContext * kKvHeads * kHeadDim;
  std::vector<float> keys(kSlots * kSlot, 0.5f), values(kSlots * kSlot, 0.5f);
  std::vector<float> query(length * kHeads * kHeadDim, 0.5f), out(query.size());
  Attention a;
  a.query = {query.data(), nullptr, nullptr, nullptr, kHeads * kHeadDim, kHeadDim, 0, 0};
  a.out = out.data();
  a.length = length;
  a.n_keys = kContext;
  a.start = kContext - length;
  a.heads = kHeads;
  a.kv_heads = kKvHeads;
  a.head_dim = kHeadDim;
  a.scale = 0.125f;
  a.causal = true;
  const double seconds = seconds_of([&] {
    for (int64_t slot = 0; slot < kSlots; slot += length) {
      a.keys = {keys.data() + slot * kSlot, nullptr, nullptr, nullptr, kKvHeads * kHeadDim, kHeadDim, 0, 0};
      a.values = {values.data() + slot * kSlot, nullptr, nullptr, nullptr, kKvHeads * kHeadDim, kHeadDim, 0, 0};
      attend(a);
    }
  });
  const double seen = static_cast<double>(kContext) - static_cast<double>(length - 1) / 2;  // keys of a query, on average
  return 1e-9 * 4 * kSlots * seen * kHeads * kHeadDim / seconds;
}

constexpr size_t kHidden = 512, kWide = 1536, kHeadDim = 64, kRotated = kHidden / kHeadDim;  // of a block
constexpr uint32_t kIn = XNN_VALUE_FLAG_EXTERNAL_INPUT, kOut = XNN_VALUE_FLAG_EXTERNAL_OUTPUT;

// What an export of ours has before the attention: norm, product, rotation.
std::unique_ptr<Graph> attention_input(size_t tokens, int bits) {
  auto graph = std::make_unique<Graph>(4);
  const uint32_t x = graph->external(0, tokens, kHidden, kIn), qkv = graph->external(1, tokens, kHidden, kOut);
  const uint32_t heads = graph->external(2, tokens * kRotated, kHeadDim, kIn);
  const uint32_t turned = graph->external(3, tokens * kRotated, kHeadDim, kOut);
  graph->product(graph->norm(x, tokens, kHidden), qkv, tokens, kHidden, kHidden, bits);
  const uint32_t swapped = graph->internal(tokens * kRotated, kHeadDim);
  const uint32_t cosines = graph->internal(tokens * kRotated, kHeadDim), sines = graph->internal(tokens * kRotated, kHeadDim);
  const uint32_t angles = graph->constant(1, kHeadDim, 0.5f);
  graph->float_product(heads, graph->constant(kHeadDim, kHeadDim, 1), swapped);
  graph->multiply(heads, angles, cosines);
  graph->multiply(swapped, angles, sines);
  graph->add(cosines, sines, turned);
  graph->finish();
  return graph;
}

// And after it: output product, norm, gated feed-forward, both sums.
std::unique_ptr<Graph> feed_forward(size_t tokens, int bits) {
  auto graph = std::make_unique<Graph>(3);
  const uint32_t x = graph->external(0, tokens, kHidden, kIn), mixed = graph->external(1, tokens, kHidden, kIn);
  const uint32_t out = graph->external(2, tokens, kHidden, kOut);
  const uint32_t projected = graph->internal(tokens, kHidden), sum = graph->internal(tokens, kHidden);
  const uint32_t gate = graph->internal(tokens, kWide), open = graph->internal(tokens, kWide);
  const uint32_t silu = graph->internal(tokens, kWide), up = graph->internal(tokens, kWide);
  const uint32_t wide = graph->internal(tokens, kWide), down = graph->internal(tokens, kHidden);
  graph->product(mixed, projected, tokens, kHidden, kHidden, bits);
  graph->add(x, projected, sum);
  const uint32_t normed = graph->norm(sum, tokens, kHidden);
  graph->product(normed, gate, tokens, kWide, kHidden, bits);
  graph->product(normed, up, tokens, kWide, kHidden, bits);
  graph->sigmoid(gate, open);
  graph->multiply(gate, open, silu);
  graph->multiply(silu, up, wide);
  graph->product(wide, down, tokens, kHidden, kWide, bits);
  graph->add(sum, down, out);
  graph->finish();
  return graph;
}

// Microseconds a block takes for so many tokens, attention apart: products, norms, rotation, gate, sums, calls. Of blocks one
// after the other, so that what a call needs is as cold as in a model.
double block_us(size_t tokens, size_t blocks, int bits) {
  std::vector<std::unique_ptr<Graph>> graphs;
  for (size_t i = 0; i < blocks; ++i) {
    graphs.push_back(attention_input(tokens, bits));
    graphs.push_back(feed_forward(tokens, bits));
  }
  const double seconds = seconds_of([&] {
    for (const auto& graph : graphs) graph->call();
  });
  return 1e6 * seconds / static_cast<double>(blocks);
}

}  // namespace

std::string calibrate_json(const std::string& runtime) {
  std::ostringstream json;
  json << "{\"runtime\":\"" << runtime
       << "\",\"threads\":" << executorch::extension::threadpool::get_threadpool()->get_thread_count()
       << ",\"stream\":" << stream_json() << ",\"decode_8_bit\":" << matvec_json(8) << ",\"decode_4_bit\":" << matvec_json(4)
       << "," << among_others_json(8) << "," << among_others_json(4)
       << ",\"prefill_4_bit_gops\":" << prefill_gops(4)
       << ",\"attention_gops\":" << attention_gops(1) << ",\"prefill_attention_gops\":" << attention_gops(kPrompt)
       << ",\"block_4_bit_us\":" << block_us(1, kManyBlocks, 4)
       << ",\"prefill_block_8_bit_us\":" << block_us(kPrompt, kFewBlocks, 8)
       << ",\"prefill_block_4_bit_us\":" << block_us(kPrompt, kFewBlocks, 4) << "}";
  return json.str();
}

}  // namespace mobile_export
