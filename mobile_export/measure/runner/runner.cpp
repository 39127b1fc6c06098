// Loads a .pte, runs prompts and single tokens, and prints one line of JSON: the fields of measurement.py. With --calibrate it
// takes no model and measures the machine: the fields of machine_speed.py.
//
// Exit codes: 0 measured; 2 the command line; 3 ExecuTorch refuses the file or a call, with one line on stderr.
#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "calibrate.h"
#include "process_memory.h"
#include "thread_pool.h"

namespace {

using executorch::aten::ScalarType;
using executorch::etdump::ETDumpGen;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::BackendOptions;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::LoadBackendOptionsMap;

constexpr const char* kXnnpack = "XnnpackBackend";
constexpr int64_t kFirstToken = 3;  // prompts count up from here: fixed tokens, no sampling in the time

struct Options {
  std::string model;
  int threads = 1;
  int64_t prompt_tokens = 128;
  int64_t new_tokens = 64;
  int sequences = 1;
  int warm_up = 1;
  std::vector<int64_t> affinity;
  bool calibrate = false;
  bool weight_cache = false;
  bool in_memory = false;
  std::string packed_weights;
  std::string etdump;
  std::vector<int64_t> logits_of;
  int64_t logits_values = 8;
  std::vector<std::string> drop;

  bool cached() const { return weight_cache || !packed_weights.empty(); }
};

std::string first_complaint;  // what ExecuTorch said first when something went wrong; what follows repeats it by the hundred

void keep_first_complaint(
    et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t length) {
  if (level == kFatal) std::fprintf(stderr, "%.*s\n", static_cast<int>(length), message);
  if (level == kError && first_complaint.empty()) first_complaint.assign(message, length);
}

[[noreturn]] void refuse(int code, const std::string& what) {
  std::fprintf(stderr, "%s%s%s\n", what.c_str(), first_complaint.empty() ? "" : ": ", first_complaint.c_str());
  std::exit(code);
}

void check(Error error, const std::string& what) {
  if (error != Error::Ok) refuse(3, what + " failed with error " + std::to_string(static_cast<int>(error)));
}

std::vector<int64_t> numbers(const std::string& name, const std::string& text) {
  std::vector<int64_t> found;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    char* end = nullptr;
    found.push_back(std::strtoll(part.c_str(), &end, 10));
    if (end == part.c_str() || *end || found.back() < 0) refuse(2, name + " " + text + ": not numbers from 0 on");
  }
  if (found.empty()) refuse(2, name + ": a number is missing");
  return found;
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--weight-cache" || name == "--in-memory" || name == "--calibrate") {
      (name == "--calibrate" ? options.calibrate : name == "--in-memory" ? options.in_memory : options.weight_cache) = true;
      continue;
    }
    if (i + 1 == count) refuse(2, name + ": no such option, or its value is missing");
    const std::string value = arguments[++i];
    if (name == "--model") options.model = value;
    else if (name == "--threads") options.threads = static_cast<int>(numbers(name, value)[0]);
    else if (name == "--prompt-tokens") options.prompt_tokens = numbers(name, value)[0];
    else if (name == "--new-tokens") options.new_tokens = numbers(name, value)[0];
    else if (name == "--sequences") options.sequences = static_cast<int>(numbers(name, value)[0]);
    else if (name == "--warm-up") options.warm_up = static_cast<int>(numbers(name, value)[0]);
    else if (name == "--affinity") options.affinity = numbers(name, value);
    else if (name == "--packed-weights") options.packed_weights = value;
    else if (name == "--etdump") options.etdump = value;
    else if (name == "--logits-of") options.logits_of = numbers(name, value);
    else if (name == "--logits-values") options.logits_values = numbers(name, value)[0];
    else if (name == "--drop") options.drop.push_back(value);
    else refuse(2, name + ": no such option");
  }
  if (options.model.empty() && !options.calibrate) refuse(2, "--model: name a .pte file");
  if (!options.model.empty() && options.calibrate) refuse(2, "--calibrate: takes no --model");
  if (options.prompt_tokens < 1) refuse(2, "--prompt-tokens: at least 1");
  if (options.threads < 1) refuse(2, "--threads: at least 1");
  if (options.packed_weights.size() >= executorch::runtime::kMaxOptionValueLength) {
    refuse(2, "--packed-weights: a path of at most 255 bytes");
  }
  return options;
}

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A loaded model. A sequence begins wherever a call starts at 0.
class Model {
 public:
  Model(const Options& options, std::unique_ptr<ETDumpGen> tracer) : tracer_(tracer.get()) {
    const double began = now_s();
    const auto mode = options.in_memory ? Module::LoadMode::File : Module::LoadMode::Mmap;
    module_ = std::make_unique<Module>(options.model, mode, std::move(tracer));
    if (options.cached()) {
      BackendOptions<3> xnnpack;
      check(xnnpack.set_option("weight_cache_enabled", true), "weight_cache_enabled");
      if (!options.packed_weights.empty()) {
        check(xnnpack.set_option("packed_cache_path", options.packed_weights.c_str()), "packed_cache_path");
      }
      LoadBackendOptionsMap map;
      check(map.set_options(kXnnpack, xnnpack.view()), "options of the backend");
      check(module_->load(map), options.model + ": loading the program");
    } else {
      check(module_->load(), options.model + ": loading the program");
    }
    load_s = now_s() - began;
    max_prompt_ = constant("get_max_seq_len", 1);
    vocab_size = constant("get_vocab_size", 1 << 30);
    resident_after_load = mobile_export::resident_json();
    const double began_init = now_s();
    check(module_->load_method("forward"), options.model + ": initialising forward");
    init_s = now_s() - began_init;
  }

  // Logits of the last token, valid until the next call. A prompt longer than the program takes goes in pieces.
  executorch::aten::Tensor run(std::vector<int64_t> tokens, int64_t start) {
    for (size_t from = 0;;) {
      const size_t count = std::min<size_t>(tokens.size() - from, max_prompt_);
      int64_t at = start + static_cast<int64_t>(from);
      auto ids = from_blob(tokens.data() + from, {1, static_cast<int>(count)}, ScalarType::Long);
      auto position = from_blob(&at, {1}, ScalarType::Long);
      auto result = module_->execute("forward", {EValue(*ids), EValue(*position)});
      check(result.error(), "running " + std::to_string(count) + " tokens at " + std::to_string(at));
      from += count;
      if (from == tokens.size()) return result->at(0).toTensor();
    }
  }

  // From here on only what runs now is in the dump.
  void forget_trace() {
    if (tracer_) tracer_->reset();
  }

  void write_trace(const std::string& path) {
    const auto dump = tracer_->get_etdump_data();
    std::ofstream file(path, std::ios::binary);
    file.write(static_cast<const char*>(dump.buf), static_cast<std::streamsize>(dump.size));
    file.close();
    if (!file) refuse(3, path + ": cannot be written");
    std::free(dump.buf);
  }

  double load_s = 0;
  double init_s = 0;
  int64_t vocab_size = 0;
  std::string resident_after_load;

 private:
  int64_t constant(const std::string& method, int64_t otherwise) {
    auto names = module_->method_names();
    check(names.error(), "listing the methods");
    if (!names->count(method)) return otherwise;
    auto value = module_->get(method);
    check(value.error(), method);
    return value->toInt();
  }

  ETDumpGen* tracer_;
  std::unique_ptr<Module> module_;
  int64_t max_prompt_ = 1;
};

template <typename T>
std::string list_json(const std::vector<T>& values) {
  std::ostringstream json;
  json.precision(9);
  for (size_t i = 0; i < values.size(); ++i) json << (i ? "," : "[") << values[i];
  json << (values.empty() ? "[]" : "]");
  return json.str();
}

// Decode times, the seconds of each token of each sequence, as nested lists.
std::string nested_json(const std::vector<std::vector<double>>& lists) {
  std::vector<std::string> inner;
  for (const auto& list : lists) inner.push_back(list_json(list));
  return list_json(inner);
}

std::string logits_json(const executorch::aten::Tensor& logits, const Options& options) {
  if (logits.scalar_type() != ScalarType::Float) refuse(3, "the logits are not float32");
  const float* values = logits.const_data_ptr<float>();
  const auto count = static_cast<int64_t>(logits.numel());
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  std::ostringstream json;
  json.precision(9);
  json << "{\"tokens\":" << list_json(options.logits_of) << ",\"count\":" << count
       << ",\"argmax\":" << std::max_element(values, values + count) - values << ",\"sum\":" << sum
       << ",\"values\":" << list_json(std::vector<float>(values, values + std::min(count, options.logits_values))) << "}";
  return json.str();
}

std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (size_t i = 0; i < executorch::runtime::get_num_registered_backends(); ++i) {
    auto name = executorch::runtime::get_backend_name(i);
    if (name.ok()) names.push_back("\"" + std::string(*name) + "\"");
  }
  return names;
}

void pin(const std::vector<int64_t>& cores) {
  if (cores.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int64_t core : cores) CPU_SET(core, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) refuse(2, "--affinity: these cores cannot be had");
}

// Asks the kernel to keep nothing of a file in memory.
void drop_from_page_cache(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) refuse(3, path + ": cannot be opened");
  fsync(file);  // pages not yet written are not dropped
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  close(file);
}

}  // namespace

int main(int count, char** arguments) {
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(keep_first_complaint, __FILE__));
  executorch::runtime::runtime_init();
  const Options options = parse(count, arguments);
  for (const std::string& path : options.drop) drop_from_page_cache(path);
  pin(options.affinity);  // before the pool's threads are made, which inherit it
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (!pool || !pool->_unsafe_reset_threadpool(options.threads)) refuse(3, "no thread pool");
  if (options.calibrate) {
    try {
      std::printf("%s\n", mobile_export::calibrate_json("executorch " RUNNER_EXECUTORCH_VERSION ", C++").c_str());
    } catch (const std::exception& error) {
      refuse(3, error.what());
    }
    return 0;
  }
  const std::string resident_at_start = mobile_export::resident_json();
  const bool packed_before = std::ifstream(options.packed_weights).good();

  Model model(options, options.etdump.empty() ? nullptr : std::make_unique<ETDumpGen>());
  const std::string resident_after_init = mobile_export::resident_json();
  std::vector<int64_t> prompt(options.prompt_tokens);
  for (int64_t i = 0; i < options.prompt_tokens; ++i) prompt[i] = (kFirstToken + i) % model.vocab_size;

  double began = now_s();
  model.run(prompt, 0);
  const double first_token_s = now_s() - began;
  std::vector<double> prefill_s;
  std::vector<std::vector<double>> decode_s;
  for (int sequence = 0; sequence < options.warm_up + options.sequences; ++sequence) {
    began = now_s();
    model.run(prompt, 0);
    const double prompt_s = now_s() - began;
    model.forget_trace();
    std::vector<double> steps;
    for (int64_t i = 0; i < options.new_tokens; ++i) {
      began = now_s();
      model.run({(kFirstToken + i) % model.vocab_size}, options.prompt_tokens + i);
      steps.push_back(now_s() - began);
    }
    if (sequence >= options.warm_up) {
      prefill_s.push_back(prompt_s);
      decode_s.push_back(steps);
    }
  }
  if (!options.etdump.empty()) model.write_trace(options.etdump);
  if (!options.packed_weights.empty() && !packed_before) {
    BackendOptions<1> save;
    check(save.set_option("save_weight_cache_on_disk", true), "save_weight_cache_on_disk");
    check(executorch::runtime::set_option(kXnnpack, save.view()), options.packed_weights + ": writing packed weights");
  }
  const std::string resident_at_end = mobile_export::resident_json();
  const long peak_kib = mobile_export::peak_rss_kib();
  const std::string logits =
      options.logits_of.empty() ? "null" : logits_json(model.run(options.logits_of, 0), options);

  std::ostringstream json;
  json.precision(9);
  json << "{\"runtime\":\"executorch " RUNNER_EXECUTORCH_VERSION ", C++\",\"threads\":" << pool->get_thread_count()
       << ",\"backends\":" << list_json(backends()) << ",\"load_s\":" << model.load_s << ",\"init_s\":" << model.init_s
       << ",\"first_token_s\":" << first_token_s << ",\"prompt_tokens\":" << options.prompt_tokens
       << ",\"prefill_s\":" << list_json(prefill_s) << ",\"decode_s\":" << nested_json(decode_s)
       << ",\"at_start\":" << resident_at_start << ",\"after_load\":" << model.resident_after_load
       << ",\"after_init\":" << resident_after_init << ",\"at_end\":" << resident_at_end
       << ",\"peak_rss_kib\":" << peak_kib << ",\"logits\":" << logits << "}";
  std::printf("%s\n", json.str().c_str());
  return 0;
}
