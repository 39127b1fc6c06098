// What this machine streams and computes, measured without a model: what `check` predicts speed from.
#pragma once

#include <string>

namespace mobile_export {

// The fields of machine_speed.py as JSON, on ExecuTorch's thread pool as it is set. Takes some 5 seconds.
//
// Raises std::runtime_error where XNNPACK refuses, or gives a product that is wrong.
std::string calibrate_json(const std::string& runtime);

}  // namespace mobile_export
