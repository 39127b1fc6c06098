// What the kernel says this process keeps resident (proc(5)), in KiB.
#pragma once

#include <fstream>
#include <sstream>
#include <string>

namespace mobile_export {

// The number after "KEY:" in a file of such lines; -1 where there is none.
inline long kib(const char* file, const std::string& key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, key.size(), key) == 0 && line[key.size()] == ':') return std::stol(line.substr(key.size() + 1));
  }
  return -1;
}

// smaps_rollup walks the pages; the counters of status lag behind.
inline std::string resident_json() {
  constexpr const char* rollup = "/proc/self/smaps_rollup";
  const long anonymous = kib(rollup, "Anonymous");
  std::ostringstream json;
  json << "{\"rss_anon_kib\":" << anonymous << ",\"rss_file_kib\":" << kib(rollup, "Rss") - anonymous
       << ",\"pss_kib\":" << kib(rollup, "Pss") << "}";
  return json.str();
}

inline long peak_rss_kib() { return kib("/proc/self/status", "VmHWM"); }

}  // namespace mobile_export
