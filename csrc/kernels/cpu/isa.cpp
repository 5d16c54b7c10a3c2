#include "isa.h"

#include <cstdlib>
#include <iterator>
#include <stdexcept>

namespace ifru::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};

bool supported(Isa isa) {
#if defined(IFRU_X86_ISA_UNITS)
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    default:
      return "baseline";
  }
}

std::string supported_isas() {
  std::string names;
  for (const Isa isa : kAll) {
    if (supported(isa)) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  return names;
}

Isa select_isa() {
  const char* requested = std::getenv("IFRU_EXT_ISA");
  if (requested == nullptr || *requested == '\0') {
    for (auto isa = std::rbegin(kAll); isa != std::rend(kAll); ++isa) {
      if (supported(*isa)) return *isa;
    }
  } else {
    for (const Isa isa : kAll) {
      if (supported(isa) && isa_name(isa) == std::string(requested)) return isa;
    }
  }
  throw std::runtime_error("IFRU_EXT_ISA: expected one of " + supported_isas() + ", got '" +
                           std::string(requested == nullptr ? "" : requested) + "'");
}

}  // namespace ifru::cpu
