// Calls registered operators, the way a program does, with arguments read from stdin. One call:
//
//   call NAME RESULT        RESULT: which argument is written to stdout afterwards, as raw bytes
//   tensor TYPE SIZE...     f, b (int8) or l (int64); raw bytes follow the line
//   int N | float X | bool N | none
//   end
//
// Before the result a line "ok BYTES", or "error CODE" and nothing more.
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include <cstdlib>
#include <deque>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "thread_pool.h"

using namespace executorch::runtime;
using executorch::aten::ScalarType;
using executorch::extension::TensorPtr;

static void silent(et_timestamp_t, et_pal_log_level_t, const char*, const char*, size_t, const char*, size_t) {}

int main(int count, char** arguments) {
  register_pal(PalImpl::create(silent, __FILE__));
  runtime_init();
  executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(count > 1 ? std::atoi(arguments[1]) : 1);
  std::string line, name;
  size_t result = 0;
  std::deque<std::vector<char>> bytes;
  std::deque<TensorPtr> tensors;
  std::deque<EValue> values;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "call") {
      bytes.clear(), tensors.clear(), values.clear();
      words >> name >> result;
    } else if (kind == "tensor") {
      char type;
      words >> type;
      std::vector<executorch::aten::SizesType> sizes;
      size_t size = type == 'f' ? 4 : type == 'l' ? 8 : 1;
      for (executorch::aten::SizesType each; words >> each; size *= each) sizes.push_back(each);
      std::cin.read(bytes.emplace_back(size).data(), size);
      const auto scalar = type == 'f' ? ScalarType::Float : type == 'l' ? ScalarType::Long : ScalarType::Char;
      tensors.push_back(executorch::extension::from_blob(bytes.back().data(), sizes, scalar));
      values.emplace_back(*tensors.back());
    } else if (kind == "int") {
      int64_t value;
      words >> value;
      values.emplace_back(value);
    } else if (kind == "float") {
      double value;
      words >> value;
      values.emplace_back(value);
    } else if (kind == "bool") {
      bool value;
      words >> value;
      values.emplace_back(value);
    } else if (kind == "none") {
      values.emplace_back();
    } else if (kind == "end") {
      std::vector<EValue*> stack;
      for (EValue& value : values) stack.push_back(&value);
      auto op = get_op_function_from_registry(name.c_str());
      if (!op.ok()) return 3;
      KernelRuntimeContext context;
      (*op)(context, {stack.data(), stack.size()});
      if (context.failure_state() != Error::Ok) {
        std::cout << "error " << static_cast<int>(context.failure_state()) << "\n";
        continue;
      }
      const auto& tensor = values[result].toTensor();
      std::cout << "ok " << tensor.nbytes() << "\n";
      std::cout.write(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
    } else {
      return 2;
    }
  }
}
